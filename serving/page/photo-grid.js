// @ts-check
/** The panel of several photos: a grid that fills as the answers arrive, and a CSV file of them. */

import { predict } from "./classifier.js";
import { download, toCsv } from "./csv.js";
import { announce, byId, element } from "./dom.js";
import { feedbackMenu } from "./feedback.js";
import { percent } from "./format.js";
import { currentModel, modelOf } from "./model.js";
import { isUnlike } from "./prediction-view.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Model} Model */
/** @typedef {{file: File, answer?: Answer, model?: Model, error?: string}} Row `model`: the one that answered. */

const MAX_IN_FLIGHT = 4; // enough to fill a batch of the network, and few enough to leave room for other users
const THUMBNAIL_SIDE = 320; // pixels

const title = byId("several-title");
const grid = byId("grid");
/** @type {HTMLProgressElement} */
const progress = byId("several-progress");
/** @type {HTMLButtonElement} */
const csv = byId("csv");

/** @type {Row[]} */
let rows = [];
csv.addEventListener("click", () => download("answers.csv", toCsv(rows)));

/**
 * Classify the photos and show each answer as it arrives.
 * @param {File[]} files
 * @param {AbortSignal} signal
 * @param {(row: Row, opener: HTMLElement) => void} onOpen Called when the user opens one of the photos.
 */
export async function showPhotoGrid(files, signal, onOpen) {
  rows = files.map((file) => ({ file }));
  csv.disabled = true;
  progress.hidden = false;
  progress.max = rows.length;
  grid.replaceChildren();
  showProgress(0);
  const cards = rows.map((row) => {
    const card = createCard(row.file.name);
    card.open.addEventListener("click", () => onOpen(row, card.open));
    grid.append(card.item);
    return card;
  });

  let next = 0;
  let done = 0;
  async function worker() {
    while (next < rows.length) {
      const index = next++;
      await Promise.all([drawThumbnail(rows[index].file, cards[index].thumb), classify(rows[index], signal)]);
      if (signal.aborted) return;
      showResult(cards[index], rows[index]);
      showProgress(++done);
    }
  }
  await Promise.all(Array.from({ length: MAX_IN_FLIGHT }, worker));
  if (signal.aborted) return;
  progress.hidden = true;
  csv.disabled = false;
  announce(`${title.textContent}.`);
}

/**
 * Store the answer and its model, or the error, in the row.
 * @param {Row} row
 * @param {AbortSignal} signal
 */
async function classify(row, signal) {
  try {
    const { classes, class_map } = await currentModel();
    const answer = await predict(row.file, classes.length, { signal, explain: Boolean(class_map) });
    row.model = await modelOf(answer);
    row.answer = answer;
  } catch (error) {
    row.error = /** @type {Error} */ (error).message;
  }
}

/** Return whether the grid, or a photo of it in full, is shown, and all of its photos have their result. */
export function completeGridIsShown() {
  return progress.hidden && !(byId("several").hidden && byId("back").hidden);
}

/** @param {number} done */
function showProgress(done) {
  progress.value = done;
  title.textContent = done < rows.length ? `${done} of ${rows.length} photos` : summary();
}

/** Return how many photos have which kind of answer. */
function summary() {
  const answered = rows.flatMap(({ answer }) => answer ?? []);
  const unsure = answered.filter(({ prediction }) => prediction.uncertain).length;
  const counts = /** @type {const} */ ([
    [answered.length - unsure, "sure"],
    [unsure, "not sure"],
    [rows.length - answered.length, "without an answer"],
  ]).filter(([count]) => count); // prettier-ignore
  return `${rows.length} photos: ${counts.map((count) => count.join(" ")).join(", ")}`;
}

/**
 * Create an entry of the grid: a button that opens the photo, to which its prediction is added later.
 * @param {string} name
 */
function createCard(name) {
  const thumb = element("span", { className: "thumb" });
  const open = element(
    "button",
    { type: "button", className: "open", disabled: true, title: name },
    thumb,
    element("span", { className: "name", dir: "auto" }, name),
  );
  return { item: element("li", { className: "card" }, open), open, thumb };
}

/**
 * @param {ReturnType<typeof createCard>} card
 * @param {Row} row
 */
function showResult({ item, open }, { file, answer, model, error }) {
  open.disabled = false;
  if (answer && model) {
    const { label, confidence, uncertain } = answer.prediction;
    const unlike = isUnlike(answer.prediction, model) ? ", but unlike the training images" : "";
    item.classList.toggle("unsure", uncertain);
    open.append(
      element("strong", {}, uncertain ? "Not sure" : label),
      element("span", { className: "quiet" }, `${uncertain ? `${label}, ` : ""}${percent(confidence)}${unlike}`),
    );
    if (answer.sendFeedback) item.append(feedbackMenu(answer, model.classes, file.name));
  } else {
    item.classList.add("failed");
    open.append(element("strong", {}, "No answer"), element("span", { className: "quiet" }, error ?? ""));
  }
}

/**
 * Draw a small copy of the photo: a hundred photos at full size would fill the memory of a phone.
 * @param {File} file
 * @param {HTMLElement} thumb
 */
async function drawThumbnail(file, thumb) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, THUMBNAIL_SIDE / Math.min(bitmap.width, bitmap.height));
    const canvas = element("canvas", {
      width: Math.round(bitmap.width * scale),
      height: Math.round(bitmap.height * scale),
      className: bitmap.width < THUMBNAIL_SIDE / 4 ? "pixels" : "",
    });
    canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    thumb.append(canvas);
  } catch {
    thumb.append("No preview"); // not an image, or a format that the browser cannot show
  }
}
