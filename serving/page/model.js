// @ts-check
/** What is served, asked once, and again after a promotion. */

import { getModel } from "./api.js";

/** @typedef {import("./api.js").Model} Model */

/** @type {Promise<Model> | null} */
let asked = null;

/** @returns {Promise<Model>} */
export function currentModel() {
  asked ??= getModel().catch((error) => {
    asked = null; // the next picture asks again
    throw error;
  });
  return asked;
}

/**
 * The model that gave an answer; while the page was open, another may have been promoted.
 * @param {import("./api.js").Answer} answer
 * @returns {Promise<Model>}
 */
export async function modelOf({ model: { name, version } }) {
  const known = await currentModel();
  if (known.name === name && known.version === version) return known;
  asked = null;
  return currentModel();
}
