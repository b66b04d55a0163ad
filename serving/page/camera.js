// @ts-check
/** The camera: open, close, and what it sees as a JPEG. */

import { element } from "./dom.js";

/** @type {Record<string, string>} */
const WORDS = {
  NotAllowedError: "The camera was not allowed. Allow it in the browser's settings for this page.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use by another program.",
};

/** A browser gives the camera to pages that came over https or from this very machine only. */
export const cameraAllowed = Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  /** @type {MediaStream | null} */
  #stream = null;
  #facing = "environment";
  #opening = 0;
  #canvas = element("canvas");

  /** @param {HTMLVideoElement} video */
  constructor(video) {
    this.video = video;
  }

  /**
   * @returns {Promise<boolean>} False: it was closed again while the user was asked.
   * @throws {Error} with words, where there is none or it may not be used.
   */
  async open() {
    this.close();
    const opening = this.#opening;
    let stream;
    try {
      const video = { facingMode: this.#facing, width: { ideal: 1280 }, height: { ideal: 960 } };
      stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      const { name, message } = /** @type {Error} */ (error);
      throw new Error(WORDS[name] ?? `The camera cannot be used: ${message}`);
    }
    if (opening !== this.#opening) {
      for (const track of stream.getTracks()) track.stop();
      return false;
    }
    this.#stream = stream;
    this.video.srcObject = stream;
    await this.video.play();
    return true;
  }

  close() {
    this.#opening++;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.video.srcObject = null;
  }

  /** The camera on the other side of a phone. */
  async turn() {
    this.#facing = this.#facing === "environment" ? "user" : "environment";
    return this.open();
  }

  /** Whether there is another one to turn to. */
  async hasOther() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter((device) => device.kind === "videoinput").length > 1;
  }

  /** @returns {Promise<File>} All of what it sees, at full size. */
  async photo() {
    if (!this.video.videoWidth) {
      await new Promise((resolve) => this.video.addEventListener("loadeddata", resolve, { once: true }));
    }
    const { videoWidth, videoHeight } = this.video;
    const blob = await this.#jpeg(0, 0, videoWidth, videoHeight, videoWidth, videoHeight, 0.92);
    return new File([blob], "photo.jpg", { type: "image/jpeg" });
  }

  /**
   * @param {number} side In pixels.
   * @param {"crop" | "squash"} fit As the model does it: the middle square, or all of it.
   * @returns {Promise<Blob>} A small square.
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
        blob ? resolve(blob) : reject(new Error("The camera gave no picture."));
      this.#canvas.toBlob(done, "image/jpeg", quality);
    });
  }
}
