// @ts-check
/** Example images that can be clicked. */

import { byId, element, showNotice } from "./dom.js";

const EXAMPLES = [
  "airplane.png", "automobile.png", "bird.png", "cat.jpg", "deer.png",
  "dog.png", "frog.png", "horse.png", "ship.png", "truck.png",
]; // prettier-ignore

/** @param {string} file */
const classOf = (file) => file.split(".")[0];

let shown = "";
let loading = new AbortController();

/** Stop loading an example: the user has chosen something else. */
export function cancelExample() {
  loading.abort();
  loading = new AbortController();
}

/**
 * @param {readonly string[]} classes The model's classes; examples of other classes are hidden.
 * @param {(files: File[]) => void} onFiles
 */
export function showExamples(classes, onFiles) {
  const known = EXAMPLES.filter((file) => classes.includes(classOf(file)));
  byId("gallery").hidden = known.length === 0;
  if (known.join() === shown) return; // a new version of the model: the example that has the focus stays
  shown = known.join();
  byId("examples").replaceChildren(...known.map((file) => element("li", {}, exampleButton(file, onFiles))));
}

/**
 * @param {string} file
 * @param {(files: File[]) => void} onFiles
 */
function exampleButton(file, onFiles) {
  const address = `page/examples/${file}`;
  const image = element("img", { src: address, alt: `Example: ${classOf(file)}`, width: 64, height: 64 });
  const button = element("button", { type: "button" }, image);
  button.addEventListener("click", async () => {
    cancelExample();
    const { signal } = loading;
    try {
      const response = await fetch(address, { signal });
      if (!response.ok) throw new Error(`status ${response.status}`);
      const blob = await response.blob();
      onFiles([new File([blob], file, { type: blob.type })]);
    } catch {
      if (!signal.aborted) showNotice("The example could not be loaded. Are you online?");
    }
  });
  return button;
}
