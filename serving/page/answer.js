// @ts-check
/**
 * Types of the answers of a classifier. The page calls `./classifier.js`, which has two implementations with the same
 * functions: the one in this folder calls the HTTP API, and the one in serving/web/ runs the network in the browser.
 */

/** @typedef {{label: string, confidence: number}} ClassScore A class and its probability, 0..1. */
/**
 * @typedef {object} Prediction
 * @property {string} label
 * @property {number} confidence 0..1
 * @property {ClassScore[]} top_k The classes, most likely first.
 * @property {boolean} uncertain
 * @property {string} input The network's input as a data URL.
 * @property {{label: string, overlay: string} | null} [explanation] The class that is explained, and the network's
 *   input with the parts that speak for it and against it in colour, as a data URL.
 */
/**
 * @typedef {object} Answer
 * @property {string} requestId Empty if there was no request.
 * @property {{name: string, version: string}} model
 * @property {Prediction} prediction
 * @property {number} totalMs Time from the call to the answer.
 * @property {string} timing A sentence about the time and its parts.
 * @property {(feedback: Feedback) => Promise<void>} [sendFeedback] Absent if nobody receives feedback.
 * @property {Feedback} [feedback] The last feedback that was sent.
 * @property {(feedback: Feedback) => void} [onFeedback] Called when feedback was sent.
 */
/**
 * The user's feedback on a prediction.
 * @typedef {object} Feedback
 * @property {boolean} correct
 * @property {string | null} label The correct class; null if it is none of the model's classes.
 */
/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} version
 * @property {string[]} classes
 * @property {number} image_size Side of the network's input, in pixels.
 * @property {"crop" | "squash"} fit
 * @property {object | null} [class_map] Absent or null if the model cannot explain its answers.
 * @property {Record<string, number>} [metrics]
 * @property {{confidence_below?: number, reason?: string | null}} [uncertain]
 */

/** The file was deleted, moved or changed after it was chosen, or an app of the phone has withdrawn it. */
export const UNREADABLE = "The browser can no longer read this file. Choose it again.";

/** There is no answer; the message is for the user. */
export class ClassifierError extends Error {
  /**
   * @param {string} message
   * @param {number} [retryAfter] Seconds after which to try again; 0 if trying again is no use.
   * @param {string} [code] The reason, for programs.
   */
  constructor(message, retryAfter = 0, code = "") {
    super(message);
    this.retryAfter = retryAfter;
    this.code = code;
  }
}
