// @ts-check
/**
 * Classifies what the camera sees, again and again. At most two frames are in flight at a time, and the frames in
 * between are dropped, so that a slow connection builds up no queue. An answer never replaces a newer one.
 */

import { ClassifierError } from "./answer.js";

/** @typedef {import("./answer.js").Answer} Answer */

const MAX_IN_FLIGHT = 2;
const MIN_INTERVAL_MS = 45; // about 20 frames per second; more cannot be seen, but would cost the service
const RATE_WINDOW_MS = 2000;

export class LiveLoop {
  /** @type {AbortController | null} */
  #run = null;
  #inFlight = 0;
  #sent = 0;
  #shown = 0;
  #notBefore = 0;
  /** @type {number[]} */
  #answerTimes = [];

  /**
   * @param {HTMLVideoElement} video
   * @param {object} callbacks
   * @param {(signal: AbortSignal) => Promise<Answer>} callbacks.classify Classify the current frame of the video.
   * @param {(answer: Answer, rate: number) => Promise<void>} callbacks.onAnswer `rate`: recent answers per second.
   * @param {(message: string, seconds: number) => void} callbacks.onBusy The loop pauses for `seconds`.
   * @param {(message: string) => void} callbacks.onFailure The loop has stopped.
   */
  constructor(video, callbacks) {
    this.video = video;
    this.callbacks = callbacks;
  }

  get running() {
    return this.#run !== null;
  }

  start() {
    this.stop();
    this.#run = new AbortController();
    this.#answerTimes = [];
    this.#notBefore = 0;
    this.#watch(this.#run.signal);
  }

  stop() {
    this.#run?.abort();
    this.#run = null;
  }

  /** @param {AbortSignal} signal */
  #watch(signal) {
    this.video.requestVideoFrameCallback((now) => {
      if (signal.aborted) return;
      this.#watch(signal);
      if (this.#inFlight >= MAX_IN_FLIGHT || now < this.#notBefore) return;
      this.#notBefore = now + MIN_INTERVAL_MS;
      void this.#classify(signal);
    });
  }

  /** @param {AbortSignal} signal */
  async #classify(signal) {
    const number = ++this.#sent;
    this.#inFlight++;
    try {
      const answer = await this.callbacks.classify(signal);
      if (signal.aborted || number < this.#shown) return;
      this.#shown = number;
      await this.callbacks.onAnswer(answer, this.#rate());
    } catch (error) {
      if (!signal.aborted) this.#handleError(/** @type {Error} */ (error));
    } finally {
      this.#inFlight--;
    }
  }

  /** @param {Error} error */
  #handleError(error) {
    const seconds = error instanceof ClassifierError ? error.retryAfter : 0;
    if (seconds) {
      this.#notBefore = performance.now() + seconds * 1000;
      this.callbacks.onBusy(error.message, seconds);
    } else {
      this.stop();
      this.callbacks.onFailure(error.message);
    }
  }

  #rate() {
    const now = performance.now();
    this.#answerTimes.push(now);
    this.#answerTimes = this.#answerTimes.filter((time) => now - time <= RATE_WINDOW_MS);
    const elapsed = now - this.#answerTimes[0];
    return elapsed ? ((this.#answerTimes.length - 1) * 1000) / elapsed : 0;
  }
}
