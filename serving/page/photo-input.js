// @ts-check
/** Receives photos that the user chooses, drops or pastes. */

import { byId, showNotice } from "./dom.js";

/** @param {(files: File[]) => void} onFiles Called with at least one file. */
export function onPhotos(onFiles) {
  for (const id of ["files", "capture"]) {
    /** @type {HTMLInputElement} */
    const input = byId(id);
    input.addEventListener("change", () => {
      if (input.files?.length) onFiles([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  byId("choose").addEventListener("click", () => byId("files").click());

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) onFiles(files);
  });

  // Accept drops anywhere: a photo dropped beside the frame would otherwise replace the page.
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
    if (files.length) onFiles(files);
    else showNotice("That was a link or text, not a file. Save the image first, then drop the file.");
  });
}
