// @ts-check
/** Asks for the API key, in a dialog that is only there when the service wants one. */

import { byId } from "./dom.js";

/** @type {HTMLDialogElement} */
const dialog = byId("key");
/** @type {HTMLInputElement} */
const text = byId("key-text");

/**
 * @param {boolean} wrong The key before was not accepted.
 * @returns {Promise<string | null>} Null: cancelled.
 */
export function askForKey(wrong) {
  byId("key-wrong").hidden = !wrong;
  text.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}

dialog.addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.close(text.value);
});
byId("key-cancel").addEventListener("click", () => dialog.close());
