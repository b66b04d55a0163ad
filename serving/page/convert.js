// @ts-check
/** Converts HEIC and AVIF photos, which a service may be unable to read, to JPEG where the browser reads them. */

import { element } from "./dom.js";

const MAX_SIDE = 2048; // pixels: a multiple of what networks take, and a fraction of a phone's photo

/**
 * @param {Blob} image
 * @returns {Promise<Blob>} The image itself if it has another format, or if the browser cannot decode it.
 */
export async function toCommonFormat(image) {
  const signature = image.slice(4, 8);
  if ((await signature.text().catch(() => "")) !== "ftyp") return image; // sending explains what cannot be read
  const bitmap = await createImageBitmap(image).catch(() => null);
  if (!bitmap) return image; // the service reads it or explains what to do
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob((jpeg) => resolve(jpeg ?? image), "image/jpeg", 0.95));
}
