// @ts-check
/** The panel of one photo: the photo, the network's view of it, and the prediction. */

import { announce, byId } from "./dom.js";
import { askForFeedback } from "./feedback.js";
import { PredictionView, spokenAnswer } from "./prediction-view.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Model} Model */

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
export function showAnswer({ requestId, prediction, ms, roundTripMs }, model) {
  view.show(prediction, model);
  announce(spokenAnswer(prediction));
  const size = model.image_size;
  seen.src = prediction.input;
  seen.alt = `The same in ${size} by ${size} pixels, as the network sees it`;
  byId("seen-caption").textContent = `The network’s view, ${size}\u00a0×\u00a0${size}`;
  byId("seen-figure").hidden = false;
  byId("timing").textContent =
    `Answered in ${Math.round(roundTripMs)} ms: ` +
    `${milliseconds(ms.decode)} to decode the photo, ${milliseconds(ms.score)} for the network, the rest in transit.`;
  askForFeedback(byId("feedback"), requestId, prediction.label, model.classes);
}

/** @param {string} message */
export function showFailure(message) {
  view.fail(message);
  announce(`No answer. ${message}`);
}

/** @param {number} ms */
function milliseconds(ms) {
  return ms < 10 ? ms.toFixed(1) : Math.round(ms).toString();
}
