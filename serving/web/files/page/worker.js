// @ts-check
/** A web worker that decodes images and runs the network, so that the page stays responsive. */

import * as ort from "../runtime/ort.wasm.bundle.min.mjs";

import { decode } from "./decode.js";

/**
 * @typedef {object} Result
 * @property {Float32Array} logits Not yet divided by the temperature.
 * @property {number} distance To be added to the energy.
 * @property {Uint8Array} input RGB of the square that the network received.
 * @property {{decode: number, score: number}} ms
 */
/** @typedef {{id: number, image: Blob, size: number, fit: "crop" | "squash"}} Request */
/** @typedef {{id: number, result?: Result, error?: string}} Response Id 0 reports whether the network was loaded. */

ort.env.wasm.numThreads = 1; // more would need headers that isolate the page, which many static hosts cannot send
ort.env.wasm.wasmPaths = { wasm: new URL("../runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

const session = load();
/** @type {Promise<void>} */
let queue = session.then(
  () => postMessage({ id: 0 }),
  (error) => postMessage({ id: 0, error: error.message }),
);
addEventListener("message", (event) => {
  queue = queue.then(() => respond(event.data)); // one at a time: the network uses one thread
});

async function load() {
  const address = new URL("../model/model.onnx", import.meta.url).href;
  const loaded = await ort.InferenceSession.create(address, { logSeverityLevel: 3 });
  await loaded.run({ image: tensor({ width: 8, height: 8, rgb: new Uint8Array(8 * 8 * 3) }) }); // the first run is slow
  return loaded;
}

/** @param {Request} request */
async function respond({ id, image, size, fit }) {
  try {
    const start = performance.now();
    const pixels = await decode(image, size, fit);
    const decoded = performance.now();
    const { logits, distance, input } = await (await session).run({ image: tensor(pixels) });
    const ms = { decode: decoded - start, score: performance.now() - decoded };
    postMessage({ id, result: { logits: logits.data, distance: Number(distance?.data[0] ?? 0), input: input.data, ms } });
  } catch (error) {
    postMessage({ id, error: /** @type {Error} */ (error).message });
  }
}

/** @param {import("./decode.js").Pixels} pixels */
function tensor({ width, height, rgb }) {
  return new ort.Tensor("uint8", rgb, [height, width, 3]);
}
