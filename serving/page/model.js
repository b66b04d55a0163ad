// @ts-check
/** The model that answers; fetched once, and again after a promotion. */

import { getModel } from "./classifier.js";

/** @typedef {import("./answer.js").Model} Model */

/** @type {Promise<Model> | null} */
let fetched = null;

/** @returns {Promise<Model>} */
export function currentModel() {
  fetched ??= getModel().catch((error) => {
    fetched = null; // the next photo tries again
    throw error;
  });
  return fetched;
}

/**
 * Return the model that gave an answer: another one may have been promoted since the page was opened.
 * @param {import("./answer.js").Answer} answer
 * @returns {Promise<Model>}
 */
export async function modelOf({ model: { name, version } }) {
  const known = await currentModel();
  if (known.name === name && known.version === version) return known;
  fetched = null;
  return currentModel();
}
