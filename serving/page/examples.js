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
    try {
      const blob = await (await fetch(address)).blob();
      onFiles([new File([blob], file, { type: blob.type })]);
    } catch {
      showNotice("The example could not be loaded. Are you online?");
    }
  });
  return button;
}
