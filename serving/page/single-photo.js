// @ts-check
/** The panel of one photo: the photo, the network's view of it, and the prediction. */

import { announce, byId } from "./dom.js";
import { askForFeedback } from "./feedback.js";
import { PredictionView, spokenAnswer } from "./prediction-view.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Model} Model */

const view = new PredictionView(byId("reading"));
/** @type {HTMLImageElement} */
const photo = byId("photo");
/** @type {HTMLImageElement} */
const seen = byId("seen");

photo.addEventListener("error", () => {
  photo.hidden = true;
  byId("photo-missing").hidden = false;
});

/**
 * Show the photo while its answer is pending.
 * @param {File} file
 */
export function showPhoto(file) {
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = `Your picture, ${file.name}`;
  photo.hidden = false;
  byId("photo-missing").hidden = true;
  byId("single-title").textContent = file.name;
  byId("seen-figure").hidden = true;
  byId("timing").textContent = "";
  byId("feedback").replaceChildren();
  view.clear("…");
}

/**
 * @param {Answer} answer
 * @param {Model} model
 */
export function showAnswer(answer, model) {
  const { prediction, timing, sendFeedback } = answer;
  view.show(prediction, model);
  announce(spokenAnswer(prediction));
  const size = model.image_size;
  seen.src = prediction.input;
  seen.alt = `The same in ${size} by ${size} pixels, as the network sees it`;
  byId("seen-caption").textContent = `The network’s view, ${size}\u00a0×\u00a0${size}`;
  byId("seen-figure").hidden = false;
  byId("timing").textContent = timing;
  if (sendFeedback) askForFeedback(byId("feedback"), answer, model.classes);
}

/** @param {string} message */
export function showFailure(message) {
  view.fail(message);
  announce(`No answer. ${message}`);
}
