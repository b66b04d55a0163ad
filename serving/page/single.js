// @ts-check
/** The panel of one picture: itself, what the network sees of it, and what it says. */

import { announce, byId } from "./dom.js";
import { askWhetherRight } from "./feedback.js";
import { Reading, sentence } from "./reading.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Model} Model */

const reading = new Reading(byId("reading"));
/** @type {HTMLImageElement} */
const photo = byId("photo");
/** @type {HTMLImageElement} */
const seen = byId("seen");

photo.addEventListener("error", () => {
  photo.hidden = true;
  byId("photo-missing").hidden = false;
});

/**
 * The picture is there, the answer is not yet.
 * @param {File} file
 */
export function showPicture(file) {
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = `Your picture, ${file.name}`;
  photo.hidden = false;
  byId("photo-missing").hidden = true;
  byId("single-title").textContent = file.name;
  byId("seen-figure").hidden = true;
  byId("timing").textContent = "";
  byId("feedback").replaceChildren();
  reading.clear("…");
}

/**
 * @param {Answer} answer
 * @param {Model} model
 */
export function showAnswer({ requestId, prediction, ms, roundTripMs }, model) {
  reading.show(prediction, model);
  announce(sentence(prediction));
  const size = model.image_size;
  seen.src = prediction.input;
  seen.alt = `The same in ${size} by ${size} pixels, as the network sees it`;
  byId("seen-caption").textContent = `The network’s view, ${size}\u00a0×\u00a0${size}`;
  byId("seen-figure").hidden = false;
  byId("timing").textContent =
    `Answered in ${Math.round(roundTripMs)} ms: ` +
    `${tenths(ms.decode)} to read the picture, ${tenths(ms.score)} for the network, the rest on the way.`;
  askWhetherRight(byId("feedback"), requestId, prediction.label, model.classes);
}

/** @param {string} message */
export function showFailure(message) {
  reading.fail(message);
  announce(`No answer. ${message}`);
}

/** @param {number} ms */
function tenths(ms) {
  return ms < 10 ? ms.toFixed(1) : Math.round(ms).toString();
}
