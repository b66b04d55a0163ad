// @ts-check
/** How pictures come in: chosen, dropped or pasted. */

import { byId, tell } from "./dom.js";

/** @param {(files: File[]) => void} take Called with at least one file. */
export function onPictures(take) {
  for (const id of ["files", "capture"]) {
    /** @type {HTMLInputElement} */
    const input = byId(id);
    input.addEventListener("change", () => {
      if (input.files?.length) take([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  byId("choose").addEventListener("click", () => byId("files").click());

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(files);
  });

  // Anywhere on the page: a photo dropped beside the frame would otherwise replace the page.
  const drop = byId("drop");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) take(files);
    else tell("That was a link or a text, not a file. Save the picture first, then drop the file.");
  });
}
