// @ts-check
/** The model that answers; fetched once, and again after a promotion. */

import { getModel } from "./classifier.js";

/** @typedef {import("./answer.js").Model} Model */

/** @type {Promise<Model> | null} */
let fetched = null;
/** @type {(model: Model) => void} */
let describe = () => {};

/** @param {(model: Model) => void} listener Called with each model that is fetched. */
export function onModel(listener) {
  describe = listener;
}

/** @returns {Promise<Model>} */
export function currentModel() {
  fetched ??= fetchModel();
  return fetched;
}

async function fetchModel() {
  try {
    const model = await getModel();
    describe(model);
    return model;
  } catch (error) {
    fetched = null; // the next photo tries again
    throw error;
  }
}

/**
 * Return the model that gave an answer: another one may have been promoted since the page was opened.
 * @param {import("./answer.js").Answer} answer
 * @returns {Promise<Model>}
 */
export async function modelOf({ model: { name, version } }) {
  const asked = currentModel();
  const known = await asked;
  if (known.name === name && known.version === version) return known;
  if (fetched === asked) fetched = null; // otherwise another answer has had it fetched again
  return currentModel();
}
