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
/** @type {HTMLButtonElement} */
const explain = byId("explain");
let explaining = false; // stays on for the next photos
let drawSeen = () => {};

photo.addEventListener("error", () => {
  photo.hidden = true;
  byId("photo-missing").hidden = false;
});

explain.addEventListener("click", () => {
  explaining = !explaining;
  drawSeen();
});

/**
 * Show the photo while its answer is pending.
 * @param {File} file
 */
export function showPhoto(file) {
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = `Your photo, ${file.name}`;
  photo.hidden = false;
  byId("photo-missing").hidden = true;
  byId("single-title").textContent = file.name;
  byId("seen-figure").hidden = explain.hidden = true;
  byId("timing").textContent = "";
  byId("feedback").replaceChildren();
  view.clear("Classifying…");
}

/**
 * @param {Answer} answer
 * @param {Model} model
 */
export function showAnswer(answer, model) {
  const { prediction, timing, sendFeedback } = answer;
  view.show(prediction, model);
  announce(spokenAnswer(prediction));
  drawSeen = () => showSeen(prediction, model);
  drawSeen();
  byId("seen-figure").hidden = false;
  byId("timing").textContent = timing;
  if (sendFeedback) askForFeedback(byId("feedback"), answer, model.classes);
}

/**
 * Show the network's view of the photo, with colours that explain the answer if the user has asked for them.
 * @param {import("./answer.js").Prediction} prediction
 * @param {Model} model
 */
function showSeen({ input, explanation }, { image_size: size }) {
  explain.hidden = !explanation;
  explain.textContent = explaining ? "Hide explanation" : "Show explanation";
  const alt = `The same in ${size} by ${size} pixels, as the network sees it`;
  if (explaining && explanation) {
    seen.src = explanation.overlay;
    seen.alt = `${alt}. Red parts speak for ${explanation.label}, blue parts against it`;
    byId("seen-caption").textContent = `Red speaks for ${explanation.label}, blue against it`;
  } else {
    seen.src = input;
    seen.alt = alt;
    byId("seen-caption").textContent = `The network’s view, ${size}\u00a0×\u00a0${size}`;
  }
}

/** @param {string} message */
export function showFailure(message) {
  view.fail(message);
  announce(`No answer. ${message}`);
}
