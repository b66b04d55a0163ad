// @ts-check
/** The service's HTTP API; addresses are relative, so the page also works below a proxy's prefix. */

/** @typedef {{label: string, confidence: number}} Share A class and its probability, 0..1. */
/**
 * @typedef {object} Prediction
 * @property {string} label
 * @property {number} confidence 0..1
 * @property {Share[]} top_k Every class, the likeliest first.
 * @property {boolean} uncertain
 * @property {string} input Data URL of what the network saw.
 */
/**
 * @typedef {object} Answer
 * @property {string} requestId
 * @property {{name: string, version: string}} model
 * @property {Prediction} prediction
 * @property {{decode: number, score: number, total: number}} ms On the server.
 * @property {number} roundTripMs As seen from here.
 */
/**
 * @typedef {object} Model What /model says, as far as the page needs it.
 * @property {string} name
 * @property {string} version
 * @property {string[]} classes
 * @property {number} image_size Side of the network's input, in pixels.
 * @property {"crop" | "squash"} fit
 * @property {Record<string, number>} [metrics]
 * @property {{confidence_below?: number}} [uncertain]
 */

const KEY = "cifar-mlflow-api-key";
const TRIES = 5;
const LARGE_BYTES = 8 * 2 ** 20;

/** The service said no, or could not be reached; the message is for people. */
export class ServiceError extends Error {
  /**
   * @param {string} message
   * @param {number} [status] 0 where there was no answer.
   * @param {number} [retryAfter] Seconds after which the service will take another try; 0: it did not say.
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
let asking = null;

/**
 * @param {(wrong: boolean) => Promise<string | null>} ask Asks the user for an API key; `wrong`: the one
 *   before was not accepted. Null: the user has none.
 */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** @returns {Promise<Model>} */
export async function getModel() {
  return (await send("model")).json();
}

/**
 * @param {Blob} picture
 * @param {number} classes How many probabilities to list.
 * @param {{signal?: AbortSignal, tries?: number}} [options] `tries`: how often to come back to a busy service.
 * @returns {Promise<Answer>}
 */
export async function predict(picture, classes, { signal, tries = TRIES } = {}) {
  // A file that is no picture goes as bytes: the service then says what is wrong with it.
  const type = picture.type.startsWith("image/") ? picture.type : "application/octet-stream";
  for (let attempt = 1; ; attempt++) {
    const start = performance.now();
    try {
      const response = await send(`predict?top_k=${classes}&input=true`, {
        method: "POST",
        body: picture,
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
 * @param {string} requestId Of the answer.
 * @param {boolean} correct
 * @param {string | null} label What it is; null: none of the classes.
 */
export async function sendFeedback(requestId, correct, label) {
  await send("feedback", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ request_id: requestId, item: 0, correct, label }),
  });
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} A good answer.
 */
async function send(path, init = {}) {
  for (;;) {
    const used = key;
    const headers = { ...init.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const response = await fetch(path, { ...init, headers }).catch((error) => {
      throw init.signal?.aborted ? error : new ServiceError(unreachable(init.body));
    });
    if (response.ok) return response;
    if (response.status !== 401 || !(key !== used || (await newKey(used !== null)))) {
      throw await refusal(response);
    }
  }
}

/**
 * Requests that are refused at the same time ask the user once.
 * @param {boolean} wrong
 */
async function newKey(wrong) {
  asking ??= askForKey(wrong).finally(() => (asking = null));
  const given = await asking;
  if (given) sessionStorage.setItem(KEY, (key = given));
  return given !== null;
}

/** @param {BodyInit | null | undefined} body */
function unreachable(body) {
  if (body instanceof Blob && body.size > LARGE_BYTES) {
    return `The connection broke while ${Math.round(body.size / 2 ** 20)} MB were sent: the photo may be too large.`;
  }
  return "The service does not answer. Is it running, and are you online?";
}

/** @param {Response} response */
async function refusal(response) {
  const words = await response.json().then(
    (body) => body?.error?.message,
    () => null, // a proxy's page
  );
  const message = words ?? `The service answered with status ${response.status}.`;
  return new ServiceError(message, response.status, Number(response.headers.get("Retry-After")) || 0);
}
