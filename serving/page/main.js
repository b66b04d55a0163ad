// @ts-check
/** The page: pictures come in from somewhere, and one panel or the other shows what is in them. */

import { onKeyNeeded, predict } from "./api.js";
import { announce, byId, showPanel, tell } from "./dom.js";
import { showGallery } from "./gallery.js";
import { onPictures } from "./intake.js";
import { askForKey } from "./key.js";
import { currentModel, modelOf } from "./model.js";
import { showSeveral } from "./several.js";
import { showAnswer, showFailure, showPicture } from "./single.js";
import { closeCamera, useCamera } from "./viewfinder.js";
import { listing } from "./words.js";

let work = new AbortController();

/** What was on the way is not wanted any more. */
function leave() {
  work.abort();
  work = new AbortController();
}

/** @param {File[]} files */
async function take(files) {
  const focusIsLost = byId("answer").contains(document.activeElement);
  leave();
  closeCamera();
  tell(null);
  byId("back").hidden = true;
  if (files.length === 1) await takeOne(files[0], work.signal, focusIsLost);
  else await takeSeveral(files, work.signal);
}

/**
 * @param {File} file
 * @param {AbortSignal} signal
 * @param {boolean} focus Put it on the title: what had it is not shown any more.
 */
async function takeOne(file, signal, focus) {
  showPicture(file);
  showPanel("single");
  if (focus) byId("single-title").focus({ preventScroll: true });
  try {
    const { classes } = await currentModel();
    const answer = await predict(file, classes.length, { signal });
    const model = await modelOf(answer);
    if (!signal.aborted) showAnswer(answer, model);
  } catch (error) {
    if (!signal.aborted) showFailure(/** @type {Error} */ (error).message);
  }
}

/**
 * @param {File[]} files
 * @param {AbortSignal} signal
 */
async function takeSeveral(files, signal) {
  try {
    const model = await currentModel();
    if (signal.aborted) return;
    showPanel("several");
    announce(`Classifying ${files.length} photos.`);
    await showSeveral(files, model, signal, (row, card) => openRow(row, card, model));
  } catch (error) {
    tell(/** @type {Error} */ (error).message);
  }
}

/**
 * One of the grid in full, with the way back to it.
 * @param {import("./several.js").Row} row
 * @param {HTMLElement} card
 * @param {import("./api.js").Model} model
 */
function openRow(row, card, model) {
  showPicture(row.file);
  if (row.answer) showAnswer(row.answer, model);
  else showFailure(row.error ?? "");
  showPanel("single");
  byId("single-title").focus();
  byId("back").hidden = false;
  byId("back").onclick = () => {
    showPanel("several");
    card.focus();
  };
}

async function introduce() {
  const { name, version, classes, metrics } = await currentModel();
  showGallery(classes, take);
  const few = classes.length <= 20;
  byId("knows").textContent = few
    ? `Give it a photo. It tells ${listing(classes)} apart, and says how sure it is.`
    : `Give it a photo. It knows ${classes.length} kinds of things, and says how sure it is.`;
  const accuracy = metrics?.["val/accuracy"];
  const right = accuracy === undefined ? "" : `: right for ${Math.round(accuracy * 100)} of 100 validation pictures`;
  byId("about").textContent = `Model ${name}, version ${version}${right}.`;
}

onKeyNeeded(askForKey);
onPictures(take);
useCamera(take, leave);
introduce().catch((error) => tell(error.message));
