// @ts-check
/** The dialog that asks for the API key; it opens only if the service requires one. */

import { byId } from "./dom.js";
import { viewClosed, viewOpened } from "./views.js";

/** @type {HTMLDialogElement} */
const dialog = byId("key");
/** @type {HTMLInputElement} */
const text = byId("key-text");
const close = () => dialog.close();

/**
 * @param {boolean} wrong The service has rejected the previous key.
 * @returns {Promise<string | null>} Null if the user cancels.
 */
export function askForKey(wrong) {
  byId("key-wrong").hidden = !wrong;
  text.setAttribute("aria-describedby", wrong ? "key-wrong" : ""); // read out with the field, which gets the focus
  text.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  viewOpened(close);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}

dialog.addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.close(text.value);
});
byId("key-cancel").addEventListener("click", close);
dialog.addEventListener("close", () => viewClosed(close));
