// @ts-check
/** The camera panel: take a photo, or classify the camera's picture continuously. */

import { Camera, cameraAllowed } from "./camera.js";
import { predict } from "./classifier.js";
import { announce, byId, showNotice, showPanel } from "./dom.js";
import { LiveLoop } from "./live-loop.js";
import { currentModel, modelOf } from "./model.js";
import { completeGridIsShown } from "./photo-grid.js";
import { PredictionView, spokenAnswer } from "./prediction-view.js";
import { viewClosed, viewOpened } from "./views.js";

const FRAME_SIDE = 128; // pixels: a few kB, and still several times the network's input
const STEADY_MS = 1000;
const CALM_MS = 3000;
const STOPPED = "The camera has stopped: it was unplugged, or this page is no longer allowed to use it. Open it again.";

/** @type {HTMLVideoElement} */
const video = byId("video");
const toggle = byId("live");
const view = new PredictionView(byId("live-reading"));
const camera = new Camera(video, () => leaveCamera(STOPPED));
const loop = new LiveLoop(video, { classify, onAnswer, onBusy, onFailure });
/** @type {"welcome" | "several"} */
let panelAfter = "welcome"; // shown when the user closes the camera

/** @param {AbortSignal} signal */
async function classify(signal) {
  const { classes, fit, image_size } = await currentModel();
  const frame = await camera.frame(Math.max(FRAME_SIDE, image_size), fit);
  return predict(frame, classes.length, { signal, tries: 1, live: true });
}

/**
 * @param {import("./answer.js").Answer} answer
 * @param {number} rate
 */
async function onAnswer(answer, rate) {
  const model = await modelOf(answer);
  if (!loop.running) return;
  if (performance.now() > busyUntil) showNotice(null);
  view.show(answer.prediction, model, { steady: true });
  byId("rate").textContent = `${Math.round(rate)} images per second, ${Math.round(answer.totalMs)} ms each`;
  announceWhenSteady(answer.prediction);
}

let candidate = "";
let candidateSince = 0;
let announced = "";

/**
 * Announce a prediction once, and only after it has been the same for a while: a screen reader cannot read out
 * ten predictions per second.
 * @param {import("./answer.js").Prediction} prediction
 */
function announceWhenSteady(prediction) {
  const verdict = prediction.uncertain ? "Not sure" : prediction.label;
  const now = performance.now();
  if (verdict !== candidate) [candidate, candidateSince] = [verdict, now];
  if (verdict === announced || now - candidateSince < STEADY_MS) return;
  announced = verdict;
  announce(spokenAnswer(prediction));
}

let busyUntil = 0;

/**
 * Pauses may follow each other closely, with a few answers between them: the message stays until they end, as a screen
 * reader would read it out each time.
 * @param {string} message
 * @param {number} seconds
 */
function onBusy(message, seconds) {
  const now = performance.now();
  if (now > busyUntil) showNotice(message);
  busyUntil = now + 1000 * seconds + CALM_MS;
  byId("rate").textContent = `Continues in ${seconds} s`;
}

/** @param {string} message */
function onFailure(message) {
  setLive(false);
  showNotice(message);
}

/** @param {boolean} on */
function setLive(on) {
  if (on) loop.start();
  else loop.stop();
  toggle.setAttribute("aria-pressed", String(on));
  byId("camera").classList.toggle("is-live", on);
  byId("live-side").hidden = !on;
  byId("rate").textContent = "";
  [announced, busyUntil] = ["", 0];
  view.clear("…");
}

export function closeCamera() {
  viewClosed(closeByUser);
  setLive(false);
  camera.close();
}

/** @param {string | null} problem Why the camera cannot be used; null if the user closes it. */
function leaveCamera(problem) {
  closeCamera();
  showPanel(panelAfter);
  byId("open-camera").focus();
  showNotice(problem);
}

const closeByUser = () => leaveCamera(null);

/**
 * @param {boolean} live Start the live view at once.
 * @param {() => void} cancelWork Cancels the requests of the panel that the camera replaces.
 */
async function openCamera(live, cancelWork) {
  if (!cameraAllowed) {
    if (live) showNotice("Browsers allow the camera only on pages loaded over https or from this computer.");
    else byId("capture").click(); // a phone's own camera app needs no permission
    return;
  }
  if (byId("camera").hidden) panelAfter = completeGridIsShown() ? "several" : "welcome";
  cancelWork();
  closeCamera();
  showNotice(null);
  viewOpened(closeByUser);
  showPanel("camera");
  byId("camera-title").focus({ preventScroll: true });
  try {
    const { fit } = await currentModel();
    if (byId("camera").hidden) return; // the user has left the panel while the service was slow
    video.classList.toggle("squash", fit === "squash");
    if (!(await camera.open())) return;
    setLive(live);
    byId("turn").hidden = !(await camera.hasOther());
  } catch (error) {
    if (!byId("camera").hidden) leaveCamera(/** @type {Error} */ (error).message);
  }
}

/**
 * @param {(files: File[]) => void} onFiles Called with each photo that is taken.
 * @param {() => void} cancelWork Called when the camera replaces another panel.
 */
export function setUpCameraPanel(onFiles, cancelWork) {
  byId("open-camera").addEventListener("click", () => openCamera(false, cancelWork));
  byId("open-live").addEventListener("click", () => openCamera(true, cancelWork));
  byId("shoot").addEventListener("click", async () => {
    try {
      const photo = await camera.photo();
      if (photo) onFiles([photo]);
    } catch (error) {
      onFailure(/** @type {Error} */ (error).message);
    }
  });
  toggle.addEventListener("click", () => setLive(!loop.running));
  byId("turn").addEventListener("click", () => camera.turn().catch((error) => onFailure(error.message)));
  byId("close-camera").addEventListener("click", closeByUser);
}
