// @ts-check
/** What the network says about a picture: a verdict, and a bar for each class. */

import { element } from "./dom.js";
import { percent } from "./words.js";

/** @typedef {import("./api.js").Prediction} Prediction */
/** @typedef {import("./api.js").Model} Model */

const MOST_BARS = 10;

/**
 * The verdict in a sentence, for those who hear the page.
 * @param {Prediction} prediction
 */
export function sentence({ label, confidence, uncertain }) {
  return uncertain ? `Not sure. Perhaps ${label}, ${percent(confidence)}.` : `${label}, ${percent(confidence)}.`;
}

export class Reading {
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
   * @param {string} [verdict] What stands there until there is an answer.
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
   * @param {{steady?: boolean}} [options] `steady`: the classes keep their places, so that bars grow and
   *   shrink rather than jump; for models of few classes.
   */
  show(prediction, model, { steady = false } = {}) {
    const { label, confidence, uncertain, top_k } = prediction;
    this.root.classList.remove("failed");
    this.root.classList.toggle("unsure", uncertain);
    this.verdict.textContent = uncertain ? "Not sure" : label;
    this.detail.textContent = uncertain
      ? `The closest is ${label}, ${percent(confidence)}. ${reason(confidence, model)}`
      : `${percent(confidence)} sure`;
    const inOrder = steady && model.classes.length <= MOST_BARS;
    const shares = inOrder ? inPlace(top_k, model.classes) : top_k.slice(0, MOST_BARS);
    this.#draw(shares, label);
  }

  /**
   * @param {import("./api.js").Share[]} shares
   * @param {string} best
   */
  #draw(shares, best) {
    while (this.bars.children.length > shares.length) this.bars.lastElementChild?.remove();
    while (this.bars.children.length < shares.length) this.bars.append(bar());
    shares.forEach(({ label, confidence }, index) => {
      const row = /** @type {HTMLElement} */ (this.bars.children[index]);
      const [name, , value] = row.children;
      name.textContent = label;
      value.textContent = percent(confidence);
      row.classList.toggle("best", label === best);
      row.style.setProperty("--share", String(confidence));
    });
  }
}

function bar() {
  const track = element("span", { className: "track" });
  track.setAttribute("aria-hidden", "true");
  return element("li", {}, element("span", { className: "name" }), track, element("span", { className: "value" }));
}

/**
 * @param {import("./api.js").Share[]} shares
 * @param {readonly string[]} classes
 */
function inPlace(shares, classes) {
  return [...shares].sort((a, b) => classes.indexOf(a.label) - classes.indexOf(b.label));
}

/**
 * @param {number} confidence
 * @param {Model} model
 */
function reason(confidence, model) {
  const limit = model.uncertain?.confidence_below;
  return limit !== undefined && confidence < limit
    ? `Below ${percent(limit)} it is mistaken too often.`
    : "The picture is unlike those that the network has learnt from.";
}
