// @ts-check
/** The dialog about the model: what it was trained on, how good it is, and where MLflow describes it. */

import { byId, element, showNotice } from "./dom.js";
import { joinWords, percent } from "./format.js";
import { currentModel } from "./model.js";
import { viewClosed, viewOpened } from "./views.js";

/** @typedef {import("./answer.js").Model} Model */
/**
 * @typedef {Model & {
 *   alias: string | null, model: string | null, precision: string, run_id: string,
 *   promotion: string | null, promoted_at: string | null, trained_on: {data: string},
 *   run_url: string | null, versions_url: string | null,
 *   uncertain: {confidence_below: number, coverage: number | null, accuracy: number | null, reason?: string | null},
 *   metrics: Record<string, number>,
 * }} Card The response of GET /model.
 */

/** @type {HTMLDialogElement} */
const dialog = byId("card");
const close = () => dialog.close();

byId("open-card").addEventListener("click", async () => {
  try {
    show(/** @type {Card} */ (await currentModel()));
  } catch (error) {
    showNotice(/** @type {Error} */ (error).message);
  }
});
byId("close-card").addEventListener("click", close);
dialog.addEventListener("close", () => viewClosed(close));

/** @param {Card} card */
function show(card) {
  byId("card-title").textContent = `${card.name}, version ${card.version}${card.alias ? ` (${card.alias})` : ""}`;
  byId("card-facts").replaceChildren(
    ...facts(card)
      .filter(([, text]) => text)
      .flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]),
  );
  byId("card-links").replaceChildren(
    ...(card.run_url ? [link(card.run_url, "Training run in MLflow")] : [element("span", {}, "Training run in MLflow: ", element("code", {}, card.run_id))]),
    ...(card.versions_url ? [link(card.versions_url, "All versions in MLflow")] : []),
  );
  dialog.showModal();
  viewOpened(close);
}

/**
 * @param {Card} card
 * @returns {[string, string][]}
 */
function facts(card) {
  const measured = /** @type {const} */ ([["validation", "val/accuracy"], ["test", "test/accuracy"]])
    .filter(([, key]) => card.metrics[key] !== undefined)
    .map(([split, key]) => `${(100 * card.metrics[key]).toFixed(1)}% of the ${split} images`); // prettier-ignore
  return [
    ["Trained on", card.trained_on.data],
    ["Classes", joinWords(card.classes)],
    ["Classified correctly", joinWords(measured)],
    ["Marked as not sure", whenUnsure(card.uncertain)],
    ["Network", card.model ?? ""],
    ["Precision", card.precision],
    ["Input", `${card.fit === "crop" ? "The central square" : "The whole photo"}, scaled to ${card.image_size} × ${card.image_size} pixels`],
    ["Promoted", card.promoted_at ? `${new Date(card.promoted_at).toLocaleString()}: ${card.promotion}` : ""],
  ]; // prettier-ignore
}

/** @param {Card["uncertain"]} uncertain */
function whenUnsure({ accuracy, confidence_below, reason }) {
  if (confidence_below > 1) return `Every answer: ${reason}`;
  const below = `Answers below ${percent(confidence_below)} confidence, and photos unlike the training images`;
  if (reason) return `${below}; ${reason}`;
  return accuracy === null ? below : `${below}; on the validation images, ${percent(accuracy)} of the other answers are right`;
}

/**
 * @param {string} href
 * @param {string} text
 */
function link(href, text) {
  return element("a", { href, target: "_blank", rel: "noreferrer" }, text);
}
