// @ts-check
/** Decodes an image file to the pixels that the network's preprocessing takes: upright RGB, transparent parts white. */

import { ClassifierError, UNREADABLE } from "./answer.js";
import { decodePng } from "./png.js";

/** @typedef {{width: number, height: number, rgb: Uint8Array}} Pixels RGB without padding. */

const MAX_PIXELS = 50_000_000; // as in the Python package; more would not fit into the memory of a phone
const MIN_REDUCED_SIDE = 256; // as in the Python package
const WANTED = "use a JPEG, PNG, WebP, BMP or GIF";
/** @type {[string, RegExp][]} */
const UNSUPPORTED = [
  ["TIFF", /^(II\*\0|MM\0\*)/],
  ["PDF", /^%PDF/],
  ["SVG", /^\s*<(\?xml|!DOCTYPE svg|svg)/],
];
const PNG = /^\x89PNG\r\n\x1a\n.{4}IHDR/s;
const JPEG = /^\xff\xd8\xff/;
const MORE_FORMATS = /^.{4}ftyp/s; // HEIC, AVIF: some browsers decode them

/**
 * @param {Blob} file
 * @param {number} size Side of the network's input, in pixels.
 * @param {"crop" | "squash"} fit
 * @returns {Promise<Pixels>} For "crop", perhaps only the central square, and a large photo at a reduced scale.
 * @throws {ClassifierError} if it is not a picture that can be decoded.
 */
export async function decode(file, size, fit) {
  if (!file.size) throw new ClassifierError("The picture is empty (0 bytes).");
  const head = file.slice(0, 32);
  const bytes = await head.arrayBuffer().catch(() => new ArrayBuffer(0));
  const start = String.fromCharCode(...new Uint8Array(bytes));
  if (!start) throw new ClassifierError(UNREADABLE); // some browsers fail, and Chromium reads nothing
  const kind = UNSUPPORTED.find(([, signature]) => signature.test(start));
  if (kind) throw new ClassifierError(`${kind[0]} is not supported; ${WANTED}.`);
  try {
    if (PNG.test(start)) return upright(await decodePng(new Uint8Array(await file.arrayBuffer()), checkSize));
    return await decodeByBrowser(file, JPEG.test(start) ? size : 0, fit);
  } catch (error) {
    if (error instanceof ClassifierError) throw error;
    throw new ClassifierError(failure(start));
  }
}

/** @param {string} start The first bytes of the file. */
function failure(start) {
  if (MORE_FORMATS.test(start)) return `This browser cannot decode HEIC, AVIF or video; ${WANTED}.`;
  const known = PNG.test(start) || JPEG.test(start) || /^(RIFF.{4}WEBP|GIF8[79]a|BM)/s.test(start);
  return known ? "The picture cannot be decoded: it is cut short, damaged, or of a rare variant." : `This is not a picture; ${WANTED}.`;
}

/**
 * @param {number} width
 * @param {number} height
 */
function checkSize(width, height) {
  if (width * height <= MAX_PIXELS) return;
  const limit = MAX_PIXELS.toLocaleString("en");
  throw new ClassifierError(`The picture has ${width} x ${height} pixels; the limit is ${limit}.`);
}

/**
 * @param {Blob} file
 * @param {number} jpegSize Reduce the scale as the Python package does for a JPEG that becomes this size; 0: do not.
 * @param {"crop" | "squash"} fit
 * @returns {Promise<Pixels>}
 */
async function decodeByBrowser(file, jpegSize, fit) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  try {
    checkSize(width, height);
    const square = Math.min(width, height);
    const [x, y, fromWidth, fromHeight] =
      fit === "crop" ? [(width - square) >> 1, (height - square) >> 1, square, square] : [0, 0, width, height];
    const scale = jpegSize ? jpegScale(square / Math.max(2 * jpegSize, MIN_REDUCED_SIDE)) : 1;
    const canvas = new OffscreenCanvas(Math.ceil(fromWidth / scale), Math.ceil(fromHeight / scale));
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (
      canvas.getContext("2d", { alpha: false, willReadFrequently: true })
    );
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, x, y, fromWidth, fromHeight, 0, 0, canvas.width, canvas.height);
    return withoutAlpha(context.getImageData(0, 0, canvas.width, canvas.height));
  } finally {
    bitmap.close();
  }
}

/**
 * Return the scale at which libjpeg decodes at least `ratio` times fewer pixels per side: 1, 2, 4 or 8.
 * @param {number} ratio
 */
function jpegScale(ratio) {
  return [8, 4, 2].find((scale) => scale <= ratio) ?? 1;
}

/**
 * @param {ImageData} image Opaque.
 * @returns {Pixels}
 */
function withoutAlpha({ width, height, data }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + 2];
  }
  return { width, height, rgb };
}

/**
 * Turn a picture as its EXIF orientation says.
 * @param {import("./png.js").Picture} picture
 * @returns {Pixels}
 */
function upright({ width, height, rgb, orientation }) {
  if (orientation < 2 || orientation > 8) return { width, height, rgb };
  const swapped = orientation >= 5;
  const mirrorX = [2, 3, 7, 8].includes(orientation); // of the stored picture
  const mirrorY = [3, 4, 6, 7].includes(orientation);
  const [newWidth, newHeight] = swapped ? [height, width] : [width, height];
  const turned = new Uint8Array(rgb.length);
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++, to += 3) {
      const [storedX, storedY] = swapped ? [y, x] : [x, y];
      const column = mirrorX ? width - 1 - storedX : storedX;
      const row = mirrorY ? height - 1 - storedY : storedY;
      const from = (row * width + column) * 3;
      turned[to] = rgb[from];
      turned[to + 1] = rgb[from + 1];
      turned[to + 2] = rgb[from + 2];
    }
  }
  return { width: newWidth, height: newHeight, rgb: turned };
}
