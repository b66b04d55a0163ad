// @ts-check
/** Example pictures to click. */

import { byId, element, tell } from "./dom.js";

const EXAMPLES = [
  "airplane.png", "automobile.png", "bird.png", "cat.jpg", "deer.png",
  "dog.png", "frog.png", "horse.png", "ship.png", "truck.png",
]; // prettier-ignore

/** @param {string} file */
const classOf = (file) => file.split(".")[0];

/**
 * @param {readonly string[]} classes What the model knows: examples of anything else are left out.
 * @param {(files: File[]) => void} take
 */
export function showGallery(classes, take) {
  const known = EXAMPLES.filter((file) => classes.includes(classOf(file)));
  byId("gallery").hidden = known.length === 0;
  byId("examples").replaceChildren(...known.map((file) => element("li", {}, example(file, take))));
}

/**
 * @param {string} file
 * @param {(files: File[]) => void} take
 */
function example(file, take) {
  const address = `page/examples/${file}`;
  const picture = element("img", { src: address, alt: `Example: ${classOf(file)}`, width: 64, height: 64 });
  const button = element("button", { type: "button" }, picture);
  button.addEventListener("click", async () => {
    try {
      const blob = await (await fetch(address)).blob();
      take([new File([blob], file, { type: blob.type })]);
    } catch {
      tell("The example could not be fetched: the service does not answer.");
    }
  });
  return button;
}
