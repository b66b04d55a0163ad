// @ts-check
/**
 * Classifies what the camera sees, again and again, and never falls behind: at most two frames are on their
 * way at a time, and those that come meanwhile are dropped. What is shown is never older than what was.
 */

import { ServiceError } from "./api.js";

/** @typedef {import("./api.js").Answer} Answer */

const AT_ONCE = 2;
const LEAST_MS = 45; // some 20 frames a second: more is nothing to the eye, and work for everybody
const RATE_MS = 2000;

export class Live {
  /** @type {AbortController | null} */
  #run = null;
  #onWay = 0;
  #sent = 0;
  #shown = 0;
  #notBefore = 0;
  /** @type {number[]} */
  #answered = [];

  /**
   * @param {HTMLVideoElement} video
   * @param {object} does
   * @param {(signal: AbortSignal) => Promise<Answer>} does.ask Classifies what the video shows now.
   * @param {(answer: Answer, rate: number) => void} does.show With the answers a second of late.
   * @param {(message: string, seconds: number) => void} does.wait The service is busy: on in so many seconds.
   * @param {(message: string) => void} does.fail It has stopped.
   */
  constructor(video, does) {
    this.video = video;
    this.does = does;
  }

  get running() {
    return this.#run !== null;
  }

  start() {
    this.stop();
    this.#run = new AbortController();
    this.#answered = [];
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
      if (this.#onWay >= AT_ONCE || now < this.#notBefore) return;
      this.#notBefore = now + LEAST_MS;
      void this.#classify(signal);
    });
  }

  /** @param {AbortSignal} signal */
  async #classify(signal) {
    const number = ++this.#sent;
    this.#onWay++;
    try {
      const answer = await this.does.ask(signal);
      if (signal.aborted || number < this.#shown) return;
      this.#shown = number;
      this.does.show(answer, this.#rate());
    } catch (error) {
      if (!signal.aborted) this.#trouble(/** @type {Error} */ (error));
    } finally {
      this.#onWay--;
    }
  }

  /** @param {Error} error */
  #trouble(error) {
    const seconds = error instanceof ServiceError ? error.retryAfter : 0;
    if (seconds) {
      this.#notBefore = performance.now() + seconds * 1000;
      this.does.wait(error.message, seconds);
    } else {
      this.stop();
      this.does.fail(error.message);
    }
  }

  #rate() {
    const now = performance.now();
    this.#answered.push(now);
    this.#answered = this.#answered.filter((time) => now - time <= RATE_MS);
    const since = now - this.#answered[0];
    return since ? ((this.#answered.length - 1) * 1000) / since : 0;
  }
}
