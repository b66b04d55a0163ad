// @ts-check
/**
 * Runs the network of a web folder in Node.js, with the runtime in that folder: node run.mjs FOLDER SIZE
 * Input: RGB images of SIZE x SIZE pixels, one after the other. Output: for each its probabilities, as float32.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, size] = [process.argv[2], Number(process.argv[3])];
const ort = await import(pathToFileURL(join(folder, "runtime", "ort.wasm.bundle.min.mjs")).href);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = await readFile(join(folder, "runtime", "ort-wasm-simd-threaded.wasm"));
const model = new Uint8Array(await readFile(join(folder, "model", "model.onnx")));
const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });

const bytes = size * size * 3;
let rest = new Uint8Array(0);
for await (const chunk of process.stdin) {
  rest = Buffer.concat([rest, chunk]);
  for (; rest.length >= bytes; rest = rest.subarray(bytes)) {
    const image = new ort.Tensor("uint8", new Uint8Array(rest.subarray(0, bytes)), [size, size, 3]);
    const { probabilities } = await session.run({ image });
    process.stdout.write(new Uint8Array(probabilities.data.buffer, probabilities.data.byteOffset, probabilities.data.byteLength));
  }
}
