// @ts-check
/** Writes answers as CSV (RFC 4180). */

import { element } from "./dom.js";

/**
 * @param {readonly import("./photo-grid.js").Row[]} rows
 * @returns {string} One row per photo, with one column per class for its probability.
 */
export function toCsv(rows) {
  const classes = [...new Set(rows.flatMap(({ model }) => model?.classes ?? []))];
  const header = ["file", "label", "confidence", "uncertain", ...classes, "error", "model", "request_id"];
  const lines = rows.map(({ file, answer, error }) => {
    if (!answer) return [file.name, "", "", "", ...classes.map(() => ""), error ?? "", "", ""];
    const { label, confidence, uncertain, top_k } = answer.prediction;
    const scores = new Map(top_k.map((score) => [score.label, score.confidence]));
    const model = `${answer.model.name}/${answer.model.version}`;
    const probabilities = classes.map((name) => scores.get(name) ?? "");
    return [file.name, label, confidence, uncertain, ...probabilities, "", model, answer.requestId];
  });
  return [header, ...lines].map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}

/** @param {string | number | boolean} value */
function cell(value) {
  let text = String(value);
  // A spreadsheet would evaluate a file name such as "=HYPERLINK(…)".
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
