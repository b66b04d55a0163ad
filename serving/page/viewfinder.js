// @ts-check
/** The panel of the camera: take a photo, or watch what the network says live. */

import { predict } from "./api.js";
import { Camera, cameraAllowed } from "./camera.js";
import { announce, byId, showPanel, tell } from "./dom.js";
import { Live } from "./live.js";
import { currentModel, modelOf } from "./model.js";
import { Reading, sentence } from "./reading.js";

const FRAME_SIDE = 128; // pixels: a few kB, and still several times what the network takes
const STEADY_MS = 1000;

/** @type {HTMLVideoElement} */
const video = byId("video");
const toggle = byId("live");
const reading = new Reading(byId("live-reading"));
const camera = new Camera(video);
const live = new Live(video, { ask, show, wait, fail });

/** @param {AbortSignal} signal */
async function ask(signal) {
  const { classes, fit, image_size } = await currentModel();
  const frame = await camera.frame(Math.max(FRAME_SIDE, image_size), fit);
  return predict(frame, classes.length, { signal, tries: 1 });
}

/**
 * @param {import("./api.js").Answer} answer
 * @param {number} rate
 */
async function show(answer, rate) {
  const model = await modelOf(answer);
  if (!live.running) return;
  tell(null);
  reading.show(answer.prediction, model, { steady: true });
  byId("rate").textContent = `${Math.round(rate)} pictures a second, ${Math.round(answer.roundTripMs)} ms each`;
  announceWhenSteady(sentenceOf(answer), answer.prediction);
}

/** @param {import("./api.js").Answer} answer */
const sentenceOf = ({ prediction }) => (prediction.uncertain ? "Not sure" : prediction.label);

let candidate = "";
let since = 0;
let said = "";

/**
 * Nobody can listen to ten answers a second: only one that has stayed for a while is said, and once.
 * @param {string} verdict
 * @param {import("./api.js").Prediction} prediction
 */
function announceWhenSteady(verdict, prediction) {
  const now = performance.now();
  if (verdict !== candidate) [candidate, since] = [verdict, now];
  if (verdict === said || now - since < STEADY_MS) return;
  said = verdict;
  announce(sentence(prediction));
}

/**
 * @param {string} message
 * @param {number} seconds
 */
function wait(message, seconds) {
  tell(message);
  byId("rate").textContent = `Goes on in ${seconds} s`;
}

/** @param {string} message */
function fail(message) {
  setLive(false);
  tell(message);
}

/** @param {boolean} on */
function setLive(on) {
  if (on) live.start();
  else live.stop();
  toggle.setAttribute("aria-pressed", String(on));
  byId("camera").classList.toggle("is-live", on);
  byId("live-side").hidden = !on;
  byId("rate").textContent = "";
  said = "";
  reading.clear("…");
}

export function closeCamera() {
  setLive(false);
  camera.close();
}

/**
 * @param {boolean} watch Classify at once what the camera sees.
 * @param {() => void} leave What is on the way for another panel ends.
 */
async function openCamera(watch, leave) {
  if (!cameraAllowed) {
    if (watch) tell("A browser gives the camera only to a page that came over https or from this machine.");
    else byId("capture").click(); // a phone's own camera needs no permission
    return;
  }
  leave();
  closeCamera();
  tell(null);
  showPanel("camera");
  byId("camera-title").focus({ preventScroll: true });
  try {
    const { fit } = await currentModel();
    video.classList.toggle("squash", fit === "squash");
    if (!(await camera.open())) return;
    byId("turn").hidden = !(await camera.hasOther());
    setLive(watch);
  } catch (error) {
    showPanel("welcome");
    tell(/** @type {Error} */ (error).message);
    byId("open-camera").focus();
  }
}

/**
 * @param {(files: File[]) => void} take Gets the photo that is taken.
 * @param {() => void} leave Called when the camera takes the place of another panel.
 */
export function useCamera(take, leave) {
  byId("open-camera").addEventListener("click", () => openCamera(false, leave));
  byId("open-live").addEventListener("click", () => openCamera(true, leave));
  byId("shoot").addEventListener("click", async () => take([await camera.photo()]));
  toggle.addEventListener("click", () => setLive(!live.running));
  byId("turn").addEventListener("click", () => camera.turn().catch((error) => fail(error.message)));
  byId("close-camera").addEventListener("click", () => {
    closeCamera();
    showPanel("welcome");
    byId("open-camera").focus();
  });
}
