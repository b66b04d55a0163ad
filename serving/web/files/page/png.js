// @ts-check
/**
 * Decodes PNG files to the exact pixels that the Python package computes.
 *
 * A browser may change pixels: by colour management, by rounding 16 bits per channel and transparency, or on
 * purpose, against fingerprinting. Format: https://www.w3.org/TR/png-3/
 */

/** @typedef {{width: number, height: number, rgb: Uint8Array, orientation: number}} Picture RGB without padding. */
/**
 * @typedef {object} Png
 * @property {number} width
 * @property {number} height
 * @property {number} depth Bits per sample.
 * @property {number} colour One of GRAY … GRAY_ALPHA, RGB_ALPHA.
 * @property {boolean} interlaced
 * @property {Uint8Array} palette RGB of each entry.
 * @property {Uint8Array | null} transparency Content of tRNS.
 * @property {number} orientation As in EXIF.
 * @property {Uint8Array[]} data Compressed pixels.
 */

const GRAY = 0;
const RGB = 2;
const PALETTE = 3;
const GRAY_ALPHA = 4;
const RGB_ALPHA = 6;
/** @type {Record<number, number>} */
const CHANNELS = { [GRAY]: 1, [RGB]: 3, [PALETTE]: 1, [GRAY_ALPHA]: 2, [RGB_ALPHA]: 4 };
const WHOLE = [[0, 0, 1, 1]]; // first column, first row, distance of columns, distance of rows
const ADAM7 = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
]; // prettier-ignore

/**
 * Transparent parts become white; of 16 bits per channel, the upper 8 are used; colour profiles are ignored.
 * @param {Uint8Array} bytes
 * @param {(width: number, height: number) => void} checkSize Throws if the picture is too large.
 * @returns {Promise<Picture>} The picture as it is stored, not turned.
 * @throws {Error} if the file is damaged.
 */
export async function decodePng(bytes, checkSize) {
  const png = readChunks(bytes);
  const { width, height, depth, colour, interlaced } = png;
  checkSize(width, height);
  const bits = depth * CHANNELS[colour];
  const passes = (interlaced ? ADAM7 : WHOLE)
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy) }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0)
    .map((pass) => ({ ...pass, bytes: Math.ceil((pass.columns * bits) / 8) }));
  const raw = await inflate(
    png.data,
    passes.reduce((sum, pass) => sum + pass.rows * (pass.bytes + 1), 0),
  );

  const rgb = new Uint8Array(width * height * 3);
  const write = pixelWriter(png, rgb);
  let start = 0;
  for (const { x, y, dx, dy, columns, rows, bytes: rowBytes } of passes) {
    let above = new Uint8Array(rowBytes);
    for (let row = 0; row < rows; row++, start += rowBytes + 1) {
      const line = raw.subarray(start + 1, start + 1 + rowBytes);
      unfilter(raw[start], line, above, Math.max(1, bits >> 3));
      write(line, columns, ((y + row * dy) * width + x) * 3, dx * 3);
      above = line;
    }
  }
  return { width, height, rgb, orientation: png.orientation };
}

/**
 * @param {Uint8Array} bytes
 * @returns {Png}
 */
function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** @type {Png} */
  const png = {
    width: view.getUint32(16),
    height: view.getUint32(20),
    depth: bytes[24],
    colour: bytes[25],
    interlaced: bytes[28] === 1,
    palette: new Uint8Array(0),
    transparency: null,
    orientation: 1,
    data: [],
  };
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "PLTE") png.palette = content;
    else if (kind === "tRNS") png.transparency = content;
    else if (kind === "IDAT") png.data.push(content);
    else if (kind === "eXIf") png.orientation = exifOrientation(content);
    else if (kind === "IEND") break;
    at += 12 + length;
  }
  const { width, height, depth, colour } = png;
  const depths = colour === PALETTE ? [1, 2, 4, 8] : colour === GRAY ? [1, 2, 4, 8, 16] : [8, 16];
  if (!width || !height || !(colour in CHANNELS) || !depths.includes(depth)) throw new Error("the header is damaged");
  return png;
}

/**
 * @param {Uint8Array} tiff
 * @returns {number} 1 to 8; 1 if there is none.
 */
function exifOrientation(tiff) {
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const little = tiff[0] === 0x49;
  try {
    const start = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(start, little); entry++) {
      const at = start + 2 + 12 * entry;
      if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
    }
  } catch {
    // damaged: treated as absent
  }
  return 1;
}

/**
 * @param {Uint8Array[]} parts
 * @param {number} size Size of the inflated data; anything after it is ignored.
 */
async function inflate(parts, size) {
  const inflated = new Uint8Array(size);
  const reader = new Blob(/** @type {BlobPart[]} */ (parts))
    .stream()
    .pipeThrough(new DecompressionStream("deflate"))
    .getReader();
  for (let filled = 0; filled < size; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the file is cut short");
    inflated.set(value.subarray(0, size - filled), filled);
    filled += value.length;
  }
  await reader.cancel();
  return inflated;
}

/**
 * Undo the filter of a row in place.
 * @param {number} filter
 * @param {Uint8Array} line
 * @param {Uint8Array} above The row before; zeros for the first one.
 * @param {number} step Bytes per pixel, at least 1.
 */
function unfilter(filter, line, above, step) {
  if (filter === 1) {
    for (let i = step; i < line.length; i++) line[i] += line[i - step];
  } else if (filter === 2) {
    for (let i = 0; i < line.length; i++) line[i] += above[i];
  } else if (filter === 3) {
    for (let i = 0; i < line.length; i++) line[i] += ((i < step ? 0 : line[i - step]) + above[i]) >> 1;
  } else if (filter === 4) {
    for (let i = 0; i < line.length; i++) {
      const left = i < step ? 0 : line[i - step];
      const corner = i < step ? 0 : above[i - step];
      const toLeft = Math.abs(above[i] - corner);
      const toAbove = Math.abs(left - corner);
      const toCorner = Math.abs(left + above[i] - 2 * corner);
      line[i] += toLeft <= toAbove && toLeft <= toCorner ? left : toAbove <= toCorner ? above[i] : corner;
    }
  } else if (filter !== 0) {
    throw new Error("a filter is unknown");
  }
}

/**
 * Return a function that writes the pixels of a row as RGB.
 * @param {Png} png
 * @param {Uint8Array} rgb
 * @returns {(line: Uint8Array, columns: number, at: number, step: number) => void} `at`: index in `rgb` of the first
 *   pixel; `step`: distance to the next.
 */
function pixelWriter(png, rgb) {
  const { depth, colour, transparency } = png;
  if (colour === PALETTE || (colour === GRAY && depth <= 8)) {
    const table = colourTable(png);
    return (line, columns, at, step) => {
      for (let i = 0; i < columns; i++, at += step) {
        const bit = i * depth;
        const value = (line[bit >> 3] >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
        rgb.set(table[value], at);
      }
    };
  }

  const width = depth / 8; // bytes per sample, the upper one first
  const channels = CHANNELS[colour];
  const hasAlpha = colour === GRAY_ALPHA || colour === RGB_ALPHA;
  const [green, blue] = channels < 3 ? [0, 0] : [width, 2 * width];
  const isTransparent = colour === GRAY ? isTransparentGray : isTransparentColour;
  return (line, columns, at, step) => {
    for (let i = 0; i < columns; i++, at += step) {
      const from = i * channels * width;
      let alpha = 255;
      if (hasAlpha) alpha = line[from + (channels - 1) * width];
      else if (transparency && isTransparent(line, from, width, transparency)) alpha = 0;
      rgb[at] = overWhite(line[from], alpha);
      rgb[at + 1] = overWhite(line[from + green], alpha);
      rgb[at + 2] = overWhite(line[from + blue], alpha);
    }
  };
}

/**
 * Return RGB over white for each value of a sample.
 * @param {Png} png
 */
function colourTable({ depth, colour, palette, transparency }) {
  const scale = 255 / (2 ** depth - 1);
  const transparentGray = transparency && transparency[1] * (depth === 1 ? 1 : scale); // Pillow: not scaled for 1 bit
  return Array.from({ length: 2 ** depth }, (_, value) => {
    if (colour === GRAY) return Array(3).fill(scale * value === transparentGray ? 255 : scale * value);
    const alpha = transparency?.[value] ?? 255;
    return [0, 1, 2].map((channel) => overWhite(palette[3 * value + channel] ?? 0, alpha));
  });
}

/**
 * @param {Uint8Array} line
 * @param {number} from
 * @param {number} width Bytes per sample.
 * @param {Uint8Array} transparency
 */
function isTransparentGray(line, from, width, transparency) {
  return line[from] === transparency[0] && line[from + 1] === transparency[1];
}

/**
 * Compare the upper 8 bits, as Pillow does.
 * @type {typeof isTransparentGray}
 */
function isTransparentColour(line, from, width, transparency) {
  const byte = 2 - width; // the content of tRNS always has two bytes per channel
  return (
    line[from] === transparency[byte] &&
    line[from + width] === transparency[byte + 2] &&
    line[from + 2 * width] === transparency[byte + 4]
  );
}

/**
 * @param {number} value 0..255
 * @param {number} alpha 0..255
 * @returns {number} Rounded as Pillow does.
 */
function overWhite(value, alpha) {
  const sum = value * alpha + 255 * (255 - alpha) + 128;
  return ((sum >> 8) + sum) >> 8;
}
