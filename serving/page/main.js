// @ts-check
/** The page: photos come from files, the camera or the examples, and a panel shows their predictions. */

import { closeCamera, setUpCameraPanel } from "./camera-panel.js";
import { predict } from "./classifier.js";
import { announce, byId, showNotice, showPanel } from "./dom.js";
import { cancelExample, showExamples } from "./examples.js";
import { joinWords } from "./format.js";
import { currentModel, modelOf, onModel } from "./model.js";
import { showPhotoGrid } from "./photo-grid.js";
import { onPhotos } from "./photo-input.js";
import { showAnswer, showFailure, showPhoto } from "./single-photo.js";
import { viewClosed, viewOpened } from "./views.js";

let work = new AbortController();

/** Cancel the requests in progress: the user has chosen something else. */
function cancelWork() {
  viewClosed(closeRow);
  cancelExample();
  work.abort();
  work = new AbortController();
}

/** @param {File[]} files */
async function onFiles(files) {
  const focusGetsLost = byId("answer").contains(document.activeElement);
  cancelWork();
  closeCamera();
  showNotice(null);
  byId("back").hidden = true;
  if (files.length === 1) await classifyOne(files[0], work.signal, focusGetsLost);
  else await classifySeveral(files, work.signal, focusGetsLost);
}

/**
 * @param {File} file
 * @param {AbortSignal} signal
 * @param {boolean} focus Move the focus to the title, as the element that has it is about to be hidden.
 */
async function classifyOne(file, signal, focus) {
  showPhoto(file);
  showPanel("single");
  if (focus) byId("single-title").focus({ preventScroll: true });
  announce("Classifying the photo.");
  try {
    const { classes, class_map } = await currentModel();
    const answer = await predict(file, classes.length, { signal, explain: Boolean(class_map) });
    const model = await modelOf(answer);
    if (!signal.aborted) showAnswer(answer, model);
  } catch (error) {
    if (!signal.aborted) showFailure(/** @type {Error} */ (error).message);
  }
}

/**
 * @param {File[]} files
 * @param {AbortSignal} signal
 * @param {boolean} focus As in `classifyOne`.
 */
async function classifySeveral(files, signal, focus) {
  try {
    await currentModel(); // without it, no photo gets an answer
    if (signal.aborted) return;
    const shown = showPhotoGrid(files, signal, openRow);
    showPanel("several"); // now that its cards give it a height to scroll to
    if (focus) byId("several-title").focus({ preventScroll: true });
    announce(`Classifying ${files.length} photos.`);
    await shown;
  } catch (error) {
    if (!signal.aborted) showNotice(/** @type {Error} */ (error).message);
  }
}

let opener = byId("grid"); // the button of the photo that is shown in full

/**
 * Show one photo of the grid in full, with a button that leads back.
 * @param {import("./photo-grid.js").Row} row
 * @param {HTMLElement} button The element that has the focus again afterwards.
 */
function openRow(row, button) {
  showPhoto(row.file);
  if (row.answer && row.model) showAnswer(row.answer, row.model);
  else showFailure(row.error ?? "");
  showPanel("single");
  byId("single-title").focus({ preventScroll: true }); // it would end the scrolling to the panel
  byId("back").hidden = false;
  opener = button;
  viewOpened(closeRow);
}

function closeRow() {
  viewClosed(closeRow);
  showPanel("several");
  opener.focus();
}

/**
 * Describe the model, and offer the examples of its classes.
 * @param {import("./answer.js").Model} model
 */
function showModel({ name, version, classes, metrics }) {
  showExamples(classes, onFiles);
  const listed = classes.length <= 20;
  byId("knows").textContent = listed
    ? `The model can tell these apart: ${joinWords(classes)}. Add a photo to see which it shows, and how sure the model is.`
    : `The model can tell ${classes.length} classes apart. Add a photo to see which it shows, and how sure the model is.`;
  const accuracy = metrics?.["val/accuracy"];
  const right =
    accuracy === undefined ? "" : ` It classified ${Math.round(accuracy * 100)}% of its validation images correctly.`;
  byId("about").textContent = `Model ${name}, version ${version}.${right}`;
}

onPhotos(onFiles);
setUpCameraPanel(onFiles, cancelWork);
byId("back").addEventListener("click", closeRow);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // its entry in the history would close the view, see views.js
  byId("answer").focus();
});
onModel(showModel);
currentModel().catch((error) => showNotice(error.message));
