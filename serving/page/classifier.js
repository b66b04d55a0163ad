// @ts-check
/** Classifies through the HTTP API. The addresses are relative, so that the page also works below a path prefix. */

import { ClassifierError, UNREADABLE } from "./answer.js";
import { askForKey } from "./api-key.js";
import { toCommonFormat } from "./convert.js";
import { milliseconds } from "./format.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Model} Model */

const KEY = "cifar-mlflow-api-key";
const MAX_TRIES = 5;
const MAX_WAIT_SECONDS = 30; // before another try; the page says nothing meanwhile
const LARGE_BYTES = 8 * 2 ** 20;
const TIMEOUT_SECONDS = 60;
const LIVE_TIMEOUT_SECONDS = 10;
const SLOWEST_BYTES_PER_SECOND = 16 * 1024; // the slowest upload that the service accepts
const KEY_NEEDED = "This service requires an API key. Try again to enter it.";
const NOT_FROM_SERVICE =
  "The answer did not come from the service, or was cut off. Sign in to the Wi-Fi if needed, then try again.";

/** @type {Storage | null} Null if the user has the browser block cookies, and with them all storage. */
let storage = null;
try {
  storage = sessionStorage;
} catch {
  // the key is asked for again after a reload
}
let key = storage?.getItem(KEY) ?? null;
/** @type {Promise<string | null> | null} */
let pendingKey = null;

/** @returns {Promise<Model>} */
export function getModel() {
  return retryWhileBusy(() => send("model"));
}

/**
 * @param {Blob} image
 * @param {number} classes Number of classes in the answer.
 * @param {object} [options]
 * @param {AbortSignal} [options.signal]
 * @param {number} [options.tries] Maximum number of tries if the service is busy.
 * @param {boolean} [options.live] The image is a frame of a live view, which monitoring leaves out.
 * @param {boolean} [options.explain] Ask for an explanation.
 * @returns {Promise<Answer>}
 */
export async function predict(image, classes, { signal, tries = MAX_TRIES, live = false, explain = false } = {}) {
  const photo = await toCommonFormat(image);
  // Other files are sent as bytes: the service explains what is wrong with them.
  const type = photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
  const seconds = live ? LIVE_TIMEOUT_SECONDS : TIMEOUT_SECONDS + photo.size / SLOWEST_BYTES_PER_SECOND;
  /** @returns {Promise<Answer>} */
  async function ask() {
    const start = performance.now();
    /** @type {RequestInit} */
    const init = {
      method: "POST",
      body: photo,
      headers: { "Content-Type": type, ...(live && { "X-Live-Frame": "1" }) },
      signal,
    };
    const body = await send(`predict?top_k=${classes}&input=true&explain=${explain}`, init, seconds);
    const totalMs = performance.now() - start;
    return {
      requestId: body.request_id,
      model: body.model,
      prediction: body.predictions[0],
      totalMs,
      timing: describe(totalMs, body.timings_ms),
      sendFeedback: (feedback) => sendFeedback(body.request_id, feedback),
    };
  }
  try {
    return await retryWhileBusy(ask, tries, signal);
  } catch (error) {
    // A model without explanations may have been promoted since the page was opened.
    if (explain && error instanceof ClassifierError && error.code === "no_explanation") {
      return predict(image, classes, { signal, tries, live });
    }
    // Or one with fewer classes.
    if (error instanceof ClassifierError && error.code === "bad_param") {
      const current = (await getModel()).classes.length;
      if (current < classes) return predict(image, current, { signal, tries, live, explain });
    }
    throw error;
  }
}

/**
 * Ask again while the service is busy and says when to.
 * @template T
 * @param {() => Promise<T>} ask
 * @param {number} [tries] Maximum number of tries.
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
async function retryWhileBusy(ask, tries = MAX_TRIES, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask();
    } catch (error) {
      const wait = error instanceof ClassifierError ? error.retryAfter : 0;
      if (!wait || wait > MAX_WAIT_SECONDS || attempt === tries) throw error;
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      signal?.throwIfAborted();
    }
  }
}

/**
 * @param {number} totalMs
 * @param {{decode: number, score: number}} ms Times on the server.
 */
function describe(totalMs, { decode, score }) {
  return (
    `Answered in ${Math.round(totalMs)} ms: decoding the photo took ${milliseconds(decode)} ms, ` +
    `the network ${milliseconds(score)} ms, and the transfer the rest.`
  );
}

/**
 * @param {string} requestId Id of the answer.
 * @param {import("./answer.js").Feedback} feedback
 */
async function sendFeedback(requestId, feedback) {
  await retryWhileBusy(() =>
    send("feedback", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ request_id: requestId, item: 0, ...feedback }),
    }),
  );
}

/**
 * Send a request, and ask the user for a key if the service requires one.
 * @param {string} path
 * @param {RequestInit} [init]
 * @param {number} [seconds] Time until the request is given up.
 * @returns {Promise<any>} The content of the response; null if it has none.
 */
async function send(path, init = {}, seconds = TIMEOUT_SECONDS) {
  /** @param {() => string | Promise<string>} explain Tells why there is no answer, unless the request was cancelled. */
  const failure = (explain) => async (/** @type {Error} */ error) => {
    if (init.signal?.aborted) throw error;
    throw new ClassifierError(error.name === "TimeoutError" ? timeoutError(seconds) : await explain());
  };
  for (;;) {
    const sentKey = key;
    const headers = { ...init.headers, ...(sentKey && { Authorization: `Bearer ${sentKey}` }) };
    const signal = withTimeout(init.signal, seconds);
    const response = await fetch(path, { ...init, headers, signal }).catch(failure(() => connectionError(init.body)));
    if (response.ok) return response.status === 204 ? null : response.json().catch(failure(() => NOT_FROM_SERVICE));
    if (response.status !== 401) throw await responseError(response);
    if (key === sentKey && !(await newKey(sentKey !== null))) throw new ClassifierError(KEY_NEEDED);
  }
}

/**
 * @param {AbortSignal | null | undefined} signal
 * @param {number} seconds
 * @returns {AbortSignal | null | undefined} A signal that also ends a request whose connection is dead, as after a
 *   change of network. Browsers before 2024 cannot combine signals; they give up by themselves after minutes.
 */
function withTimeout(signal, seconds) {
  if (!AbortSignal.any) return signal;
  const timeout = AbortSignal.timeout(seconds * 1000);
  return signal ? AbortSignal.any([signal, timeout]) : timeout;
}

/** @param {number} seconds */
function timeoutError(seconds) {
  return `There was no answer within ${Math.round(seconds)} seconds. Check the connection, then try again.`;
}

/**
 * Ask the user for a key. Requests that are refused at the same time ask once.
 * @param {boolean} wrong
 */
async function newKey(wrong) {
  pendingKey ??= askForKey(wrong).finally(() => (pendingKey = null));
  const entered = await pendingKey;
  if (entered === null) return false;
  key = entered;
  storage?.setItem(KEY, key);
  return true;
}

/** @param {BodyInit | null | undefined} body */
async function connectionError(body) {
  if (body instanceof Blob) {
    const isReadable = await body.arrayBuffer().then(() => true, () => false); // prettier-ignore
    if (!isReadable) return UNREADABLE;
    if (body.size > LARGE_BYTES) {
      return `The connection broke during the upload of ${Math.round(body.size / 2 ** 20)} MB: the photo may be too large.`;
    }
  }
  return "The service does not answer. Is it running, and are you online?";
}

/** @param {Response} response */
async function responseError(response) {
  const error = await response.json().then(
    (body) => body?.error,
    () => null, // an HTML page of a proxy
  );
  const message = error?.message ?? proxyError(response.status);
  return new ClassifierError(message, Number(response.headers.get("Retry-After")) || 0, error?.code);
}

/** @param {number} status Of a response that has no message of the service. */
function proxyError(status) {
  if (status === 413) return "The photo is too large for the server.";
  return status >= 500
    ? `The service is not available at the moment (status ${status}). Try again in a minute.`
    : `The service responded with status ${status}.`;
}
