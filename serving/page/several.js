// @ts-check
/** The panel of several pictures: a grid that fills as the answers come, and a table of them to download. */

import { predict } from "./api.js";
import { download, toCsv } from "./csv.js";
import { announce, byId, element } from "./dom.js";
import { percent } from "./words.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {{file: File, answer?: Answer, error?: string}} Row */

const AT_ONCE = 4; // enough to fill a batch of the network, and few enough to be fair to others
const THUMBNAIL = 320;

const title = byId("several-title");
const grid = byId("grid");
/** @type {HTMLProgressElement} */
const progress = byId("several-progress");
/** @type {HTMLButtonElement} */
const csv = byId("csv");

/** @type {Row[]} */
let rows = [];
/** @type {string[]} */
let classes = [];
csv.addEventListener("click", () => download("answers.csv", toCsv(rows, classes)));

/**
 * Classify the pictures, and show each answer when it comes.
 * @param {File[]} files
 * @param {Model} model
 * @param {AbortSignal} signal Stops it.
 * @param {(row: Row, card: HTMLElement) => void} open Called when the user wants to see one in full.
 */
export async function showSeveral(files, model, signal, open) {
  rows = files.map((file) => ({ file }));
  classes = model.classes;
  csv.disabled = true;
  progress.hidden = false;
  progress.max = rows.length;
  grid.replaceChildren();
  count(0);
  const cards = rows.map((row) => {
    const card = element("button", { type: "button", className: "card", disabled: true });
    card.append(element("span", { className: "thumb" }), element("span", { className: "name" }, row.file.name));
    card.addEventListener("click", () => open(row, card));
    grid.append(element("li", {}, card));
    return card;
  });

  let next = 0;
  let done = 0;
  async function worker() {
    while (next < rows.length) {
      const index = next++;
      await Promise.all([thumbnail(rows[index].file, cards[index]), ask(rows[index], model, signal)]);
      if (signal.aborted) return;
      fill(cards[index], rows[index]);
      count(++done);
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (signal.aborted) return;
  progress.hidden = true;
  csv.disabled = false;
  const failed = rows.filter((row) => row.error).length;
  announce(`${rows.length} photos classified${failed ? `, ${failed} of them without an answer` : ""}.`);
}

/**
 * @param {Row} row
 * @param {Model} model
 * @param {AbortSignal} signal
 */
async function ask(row, model, signal) {
  try {
    row.answer = await predict(row.file, model.classes.length, { signal });
  } catch (error) {
    row.error = /** @type {Error} */ (error).message;
  }
}

/** @param {number} done */
function count(done) {
  progress.value = done;
  title.textContent = done < rows.length ? `${done} of ${rows.length} photos` : `${rows.length} photos`;
}

/**
 * @param {HTMLButtonElement} card
 * @param {Row} row
 */
function fill(card, { answer, error }) {
  card.disabled = false;
  if (answer) {
    const { label, confidence, uncertain } = answer.prediction;
    card.classList.toggle("unsure", uncertain);
    card.append(
      element("strong", {}, uncertain ? "Not sure" : label),
      element("span", { className: "quiet" }, `${uncertain ? `${label}, ` : ""}${percent(confidence)}`),
    );
  } else {
    card.classList.add("failed");
    card.append(element("strong", {}, "No answer"), element("span", { className: "quiet" }, error ?? ""));
  }
}

/**
 * A small copy: a hundred photos of a camera, each in full, would fill the memory of a phone.
 * @param {File} file
 * @param {HTMLElement} card
 */
async function thumbnail(file, card) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
    const canvas = element("canvas", {
      width: Math.round(bitmap.width * scale),
      height: Math.round(bitmap.height * scale),
      className: bitmap.width < THUMBNAIL / 4 ? "pixels" : "",
    });
    canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    card.querySelector(".thumb")?.append(canvas);
  } catch {
    card.querySelector(".thumb")?.append("no preview"); // no picture, or of a kind that the browser cannot show
  }
}
