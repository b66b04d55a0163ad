// @ts-check
/** Shows a prediction: the class, how sure the network is, and a bar per class. */

import { element } from "./dom.js";
import { percent } from "./format.js";

/** @typedef {import("./answer.js").Prediction} Prediction */
/** @typedef {import("./answer.js").Model} Model */

const MAX_BARS = 10;

/**
 * Return the prediction as a sentence for screen readers.
 * @param {Prediction} prediction
 */
export function spokenAnswer({ label, confidence, uncertain }) {
  return uncertain ? `Not sure. Perhaps ${label}, ${percent(confidence)}.` : `${label}, ${percent(confidence)}.`;
}

export class PredictionView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.verdict = element("p", { className: "verdict" });
    this.detail = element("p", { className: "detail" });
    this.bars = element("ul", { className: "bars" });
    this.bars.setAttribute("aria-label", "Probability of each class");
    root.append(this.verdict, this.detail, this.bars);
  }

  /**
   * Remove the prediction.
   * @param {string} [verdict] Text to show until there is a prediction.
   * @param {string} [detail]
   */
  clear(verdict = "", detail = "") {
    this.root.classList.remove("unsure", "failed");
    this.verdict.textContent = verdict;
    this.detail.textContent = detail;
    this.bars.replaceChildren();
  }

  /** @param {string} message */
  fail(message) {
    this.clear("No answer", message);
    this.root.classList.add("failed");
  }

  /**
   * @param {Prediction} prediction
   * @param {Model} model
   * @param {{steady?: boolean}} [options] `steady`: keep the bars in the order of the model's classes, so that
   *   they grow and shrink instead of changing places. It has no effect if there are more than MAX_BARS classes.
   */
  show(prediction, model, { steady = false } = {}) {
    const { label, confidence, uncertain, top_k } = prediction;
    this.root.classList.remove("failed");
    this.root.classList.toggle("unsure", uncertain);
    this.verdict.textContent = uncertain ? "Not sure" : label;
    this.detail.textContent = uncertain
      ? `The closest match is ${label} (${percent(confidence)}). ${reason(confidence, model)}`
      : `${percent(confidence)} sure`;
    const keepOrder = steady && model.classes.length <= MAX_BARS;
    const scores = keepOrder ? inClassOrder(top_k, model.classes) : top_k.slice(0, MAX_BARS);
    this.#drawBars(scores, label);
  }

  /**
   * @param {import("./answer.js").ClassScore[]} scores
   * @param {string} best
   */
  #drawBars(scores, best) {
    while (this.bars.children.length > scores.length) this.bars.lastElementChild?.remove();
    while (this.bars.children.length < scores.length) this.bars.append(createBar());
    scores.forEach(({ label, confidence }, index) => {
      const row = /** @type {HTMLElement} */ (this.bars.children[index]);
      const [name, , value] = row.children;
      name.textContent = label;
      value.textContent = percent(confidence);
      row.classList.toggle("best", label === best);
      row.style.setProperty("--share", String(confidence));
    });
  }
}

function createBar() {
  const track = element("span", { className: "track" });
  track.setAttribute("aria-hidden", "true");
  return element("li", {}, element("span", { className: "name" }), track, element("span", { className: "value" }));
}

/**
 * @param {import("./answer.js").ClassScore[]} scores
 * @param {readonly string[]} classes
 */
function inClassOrder(scores, classes) {
  return [...scores].sort((a, b) => classes.indexOf(a.label) - classes.indexOf(b.label));
}

/**
 * Return whether an answer is unsure although its confidence would suffice: the photo is unlike the training images.
 * @param {Prediction} prediction
 * @param {Model} model
 */
export function isUnlike({ confidence, uncertain }, model) {
  return uncertain && confidence >= (model.uncertain?.confidence_below ?? 0);
}

/**
 * Explain why the model is not sure.
 * @param {number} confidence
 * @param {Model} model
 */
function reason(confidence, model) {
  const threshold = model.uncertain?.confidence_below;
  if (threshold !== undefined && threshold > 1) return `The model is never sure: ${model.uncertain?.reason}.`;
  return threshold !== undefined && confidence < threshold
    ? `Below ${percent(threshold)}, the model is wrong too often.`
    : "The photo is unlike those that the model was trained on.";
}
