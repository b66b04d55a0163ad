// @ts-check
/** Classifies in the browser: the network runs in a web worker, and no photo leaves the device. */

import { ClassifierError } from "./answer.js";
import { byId, element } from "./dom.js";
import { milliseconds } from "./format.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Prediction} Prediction */
/** @typedef {import("./worker.js").Response} Response */
/**
 * @typedef {import("./answer.js").Model & {temperature: number, ood?: {above: number}}} Model The content of
 *   model.json. An answer is uncertain if its confidence is below, or its energy (plus distance) above, a
 *   threshold. A model without thresholds is never uncertain.
 */

/** @type {Promise<Model> | null} */
let model = null;
/** @type {Map<number, (response: Response) => void>} */
const waiting = new Map();
let lastId = 0;

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const ready = new Promise((resolve, reject) => {
  waiting.set(0, ({ error }) => (error ? reject(new ClassifierError(notLoaded(error))) : resolve(null)));
  worker.addEventListener("error", () => reject(new ClassifierError(notLoaded("the runtime is missing"))));
});
worker.addEventListener("message", (/** @type {MessageEvent<Response>} */ { data }) => {
  waiting.get(data.id)?.(data);
  waiting.delete(data.id);
});
ready.then(installOfflineCopy, () => {}); // after the model: both would share the connection

/** @param {string} reason */
function notLoaded(reason) {
  return `The network cannot be loaded: ${reason}. Are you online, and is this browser up to date? Reload the page to try again.`;
}

/** Keep all files, so that the page opens without a connection. Needs https, or a page from this computer. */
async function installOfflineCopy() {
  if (!navigator.serviceWorker) return;
  await navigator.serviceWorker.register("service-worker.js");
  await navigator.serviceWorker.ready;
  byId("offline").hidden = false;
}

/** @returns {Promise<Model>} */
export function getModel() {
  model ??= fetchModel().catch((error) => {
    model = null;
    throw error;
  });
  return model;
}

/** @returns {Promise<Model>} */
async function fetchModel() {
  const response = await fetch("model/model.json").catch(() => null);
  const model = response?.ok && (await response.json().catch(() => null)); // some hosts send a page for what is missing
  if (!model) throw new ClassifierError(notLoaded("model/model.json is missing"));
  return model;
}

/**
 * @param {Blob} image
 * @param {number} classes Number of classes in the answer.
 * @param {{signal?: AbortSignal, live?: boolean}} [options] `live` matters only to the other implementation.
 * @returns {Promise<Answer>}
 */
export async function predict(image, classes, { signal } = {}) {
  const start = performance.now();
  const model = await getModel();
  await ready;
  const loadMs = performance.now() - start;
  signal?.throwIfAborted();
  const { logits, distance, input, ms } = await askWorker(image, model);
  const totalMs = performance.now() - start;
  return {
    requestId: "",
    model,
    prediction: { ...judge(logits, distance, model, classes), input: dataUrl(input, model.image_size) },
    totalMs,
    timing:
      `Answered in ${Math.round(totalMs)} ms on this device: decoding the photo took ${milliseconds(ms.decode)} ms, ` +
      `the network ${milliseconds(ms.score)} ms${loadMs < 10 ? "" : ", and loading the network the rest"}.`,
  };
}

/**
 * @param {Blob} image
 * @param {Model} model
 * @returns {Promise<import("./worker.js").Result>}
 */
function askWorker(image, { image_size: size, fit }) {
  const id = ++lastId;
  worker.postMessage({ id, image, size, fit });
  return new Promise((resolve, reject) => {
    waiting.set(id, ({ result, error }) => (result ? resolve(result) : reject(new ClassifierError(error ?? ""))));
  });
}

/**
 * Compute a prediction from logits, as `Scorer.scores` and `Scorer.answers` of the Python package do.
 * @param {Float32Array} logits
 * @param {number} distance
 * @param {Model} model
 * @param {number} count Number of classes in `top_k`.
 * @returns {Omit<Prediction, "input">}
 */
function judge(logits, distance, { classes, temperature, uncertain, ood }, count) {
  const scaled = Array.from(logits, (logit) => logit / temperature);
  const highest = Math.max(...scaled);
  const exponentials = scaled.map((value) => Math.exp(value - highest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const unlikeness = -temperature * (highest + Math.log(total)) + distance;
  const ranked = exponentials
    .map((value, index) => ({ label: classes[index], confidence: Number((value / total).toFixed(6)) }))
    .sort((a, b) => b.confidence - a.confidence);
  const [{ label, confidence }] = ranked;
  return {
    label,
    confidence,
    top_k: ranked.slice(0, count),
    uncertain: 1 / total < (uncertain?.confidence_below ?? 0) || unlikeness > (ood?.above ?? Infinity),
  };
}

/**
 * @param {Uint8Array} rgb
 * @param {number} size
 * @returns {string} A PNG.
 */
function dataUrl(rgb, size) {
  const canvas = element("canvas", { width: size, height: size });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(size, size);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    image.data.set(rgb.subarray(from, from + 3), to);
    image.data[to + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
