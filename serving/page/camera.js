// @ts-check
/** Opens and closes the camera, and captures its picture as a JPEG. */

import { element } from "./dom.js";

/** @type {Record<string, string>} */
const MESSAGES = {
  NotAllowedError: "This page is not allowed to use the camera. Allow it in the browser's settings for this page.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

/** @type {MediaTrackConstraints} */
const DEFAULT_CAMERA = { facingMode: "environment" };

/** Browsers allow the camera only on pages loaded over https or from this computer. */
export const cameraAllowed = Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  /** @type {MediaStream | null} */
  #stream = null;
  /** @type {MediaTrackConstraints} */
  #choice = DEFAULT_CAMERA;
  #openCount = 0;
  #canvas = element("canvas");

  /**
   * @param {HTMLVideoElement} video
   * @param {() => void} onEnd Called when the camera ends by itself: it is unplugged, or may no longer be used.
   */
  constructor(video, onEnd) {
    this.video = video;
    this.onEnd = onEnd;
  }

  /**
   * @returns {Promise<boolean>} False if it was closed again meanwhile, for example while the browser asked.
   * @throws {Error} with a message for the user, if there is no camera or it may not be used.
   */
  async open() {
    this.close();
    const count = this.#openCount;
    try {
      const video = { ...this.#choice, width: { ideal: 1280 }, height: { ideal: 960 } };
      const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
      if (count !== this.#openCount) {
        for (const track of stream.getTracks()) track.stop();
        return false;
      }
      for (const track of stream.getTracks()) track.addEventListener("ended", this.onEnd); // not fired by stop()
      this.#stream = stream;
      this.video.srcObject = stream;
      await this.video.play();
    } catch (error) {
      if (count !== this.#openCount) return false; // denied too late to matter, or play() was ended by close()
      this.#choice = DEFAULT_CAMERA; // the chosen one may be unplugged
      const { name, message } = /** @type {Error} */ (error);
      throw new Error(MESSAGES[name] ?? `The camera cannot be used: ${message}`);
    }
    return count === this.#openCount;
  }

  close() {
    this.#openCount++;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.video.srcObject = null;
  }

  /** Switch to the camera on the other side of a phone, or to the next camera of a computer. */
  async turn() {
    const { deviceId, facingMode } = this.#stream?.getVideoTracks()[0].getSettings() ?? {};
    if (facingMode) {
      this.#choice = { facingMode: facingMode === "environment" ? "user" : "environment" };
    } else {
      const count = this.#openCount;
      const ids = await this.#deviceIds();
      if (count !== this.#openCount) return false; // closed meanwhile
      const next = ids[(ids.indexOf(deviceId ?? "") + 1) % ids.length];
      this.#choice = { deviceId: { exact: next } };
    }
    return this.open();
  }

  /** Return whether there is another camera to switch to. */
  async hasOther() {
    return (await this.#deviceIds()).length > 1;
  }

  async #deviceIds() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput").map(({ deviceId }) => deviceId);
  }

  /** @returns {Promise<File | null>} The whole picture at full size; null if the camera was closed meanwhile. */
  async photo() {
    const count = this.#openCount;
    if (!this.video.videoWidth) {
      await new Promise((resolve) => this.video.addEventListener("loadeddata", resolve, { once: true }));
    }
    const { videoWidth, videoHeight } = this.video;
    const blob = await this.#jpeg(0, 0, videoWidth, videoHeight, videoWidth, videoHeight, 0.92);
    return count === this.#openCount ? new File([blob], "photo.jpg", { type: "image/jpeg" }) : null;
  }

  /**
   * Return the picture as a small square.
   * @param {number} side In pixels.
   * @param {"crop" | "squash"} fit The model's preprocessing: use the central square, or squash the whole picture.
   * @returns {Promise<Blob>}
   */
  frame(side, fit) {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (fit === "squash") return this.#jpeg(0, 0, width, height, side, side, 0.85);
    const square = Math.min(width, height);
    return this.#jpeg((width - square) / 2, (height - square) / 2, square, square, side, side, 0.85);
  }

  /**
   * @param {number} x
   * @param {number} y
   * @param {number} fromWidth
   * @param {number} fromHeight
   * @param {number} width
   * @param {number} height
   * @param {number} quality
   * @returns {Promise<Blob>}
   */
  #jpeg(x, y, fromWidth, fromHeight, width, height, quality) {
    this.#canvas.width = width;
    this.#canvas.height = height;
    const context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    context.drawImage(this.video, x, y, fromWidth, fromHeight, 0, 0, width, height);
    return new Promise((resolve, reject) => {
      const done = (/** @type {Blob | null} */ blob) =>
        blob ? resolve(blob) : reject(new Error("The camera returned no picture."));
      this.#canvas.toBlob(done, "image/jpeg", quality);
    });
  }
}
