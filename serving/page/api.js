// @ts-check
/** A client of the HTTP API. The addresses are relative, so that the page also works below a path prefix. */

/** @typedef {{label: string, confidence: number}} ClassScore A class and its probability, 0..1. */
/**
 * @typedef {object} Prediction
 * @property {string} label
 * @property {number} confidence 0..1
 * @property {ClassScore[]} top_k The classes, most likely first.
 * @property {boolean} uncertain
 * @property {string} input The network's input as a data URL.
 */
/**
 * @typedef {object} Answer
 * @property {string} requestId
 * @property {{name: string, version: string}} model
 * @property {Prediction} prediction
 * @property {{decode: number, score: number, total: number}} ms Times on the server.
 * @property {number} roundTripMs Time from here to the server and back.
 */
/**
 * @typedef {object} Model The fields of /model that the page uses.
 * @property {string} name
 * @property {string} version
 * @property {string[]} classes
 * @property {number} image_size Side of the network's input, in pixels.
 * @property {"crop" | "squash"} fit
 * @property {Record<string, number>} [metrics]
 * @property {{confidence_below?: number}} [uncertain]
 */

const KEY = "cifar-mlflow-api-key";
const MAX_TRIES = 5;
const LARGE_BYTES = 8 * 2 ** 20;

/** The service refused a request or could not be reached; the message is for the user. */
export class ServiceError extends Error {
  /**
   * @param {string} message
   * @param {number} [status] 0 if there was no response.
   * @param {number} [retryAfter] Seconds after which to try again; 0 if trying again is no use.
   */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = sessionStorage.getItem(KEY);
/** @type {(wrong: boolean) => Promise<string | null>} */
let askForKey = async () => null;
/** @type {Promise<string | null> | null} */
let pendingKey = null;

/**
 * Set the function that asks the user for an API key.
 * @param {(wrong: boolean) => Promise<string | null>} callback `wrong`: the previous key was rejected. It returns
 *   null if the user has no key.
 */
export function onKeyNeeded(callback) {
  askForKey = callback;
}

/** @returns {Promise<Model>} */
export async function getModel() {
  return (await send("model")).json();
}

/**
 * @param {Blob} image
 * @param {number} classes Number of classes in the answer.
 * @param {{signal?: AbortSignal, tries?: number}} [options] `tries`: maximum number of tries if the service is busy.
 * @returns {Promise<Answer>}
 */
export async function predict(image, classes, { signal, tries = MAX_TRIES } = {}) {
  // Other files are sent as bytes: the service explains what is wrong with them.
  const type = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  for (let attempt = 1; ; attempt++) {
    const start = performance.now();
    try {
      const response = await send(`predict?top_k=${classes}&input=true`, {
        method: "POST",
        body: image,
        headers: { "Content-Type": type },
        signal,
      });
      const body = await response.json();
      return {
        requestId: body.request_id,
        model: body.model,
        prediction: body.predictions[0],
        ms: body.timings_ms,
        roundTripMs: performance.now() - start,
      };
    } catch (error) {
      const wait = error instanceof ServiceError ? error.retryAfter : 0;
      if (!wait || attempt === tries) throw error;
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      signal?.throwIfAborted();
    }
  }
}

/**
 * @param {string} requestId Id of the answer.
 * @param {boolean} correct
 * @param {string | null} label The correct class; null if it is none of the model's classes.
 */
export async function sendFeedback(requestId, correct, label) {
  await send("feedback", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ request_id: requestId, item: 0, correct, label }),
  });
}

/**
 * Send a request, and ask the user for a key if the service requires one.
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} A response with a status of success.
 */
async function send(path, init = {}) {
  for (;;) {
    const sentKey = key;
    const headers = { ...init.headers, ...(sentKey && { Authorization: `Bearer ${sentKey}` }) };
    const response = await fetch(path, { ...init, headers }).catch((error) => {
      throw init.signal?.aborted ? error : new ServiceError(connectionError(init.body));
    });
    if (response.ok) return response;
    if (response.status !== 401 || !(key !== sentKey || (await newKey(sentKey !== null)))) {
      throw await responseError(response);
    }
  }
}

/**
 * Ask the user for a key. Requests that are refused at the same time ask once.
 * @param {boolean} wrong
 */
async function newKey(wrong) {
  pendingKey ??= askForKey(wrong).finally(() => (pendingKey = null));
  const entered = await pendingKey;
  if (entered) sessionStorage.setItem(KEY, (key = entered));
  return entered !== null;
}

/** @param {BodyInit | null | undefined} body */
function connectionError(body) {
  if (body instanceof Blob && body.size > LARGE_BYTES) {
    return `The connection broke during the upload of ${Math.round(body.size / 2 ** 20)} MB: the photo may be too large.`;
  }
  return "The service does not answer. Is it running, and are you online?";
}

/** @param {Response} response */
async function responseError(response) {
  const explanation = await response.json().then(
    (body) => body?.error?.message,
    () => null, // an HTML page of a proxy
  );
  const message = explanation ?? `The service responded with status ${response.status}.`;
  return new ServiceError(message, response.status, Number(response.headers.get("Retry-After")) || 0);
}
