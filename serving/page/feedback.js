// @ts-check
/** Asks the user whether a prediction is right, and if not, for the correct class. */

import { element } from "./dom.js";

/**
 * @param {HTMLElement} root
 * @param {import("./answer.js").SendFeedback} sendFeedback
 * @param {string} label The predicted class.
 * @param {readonly string[]} classes
 */
export function askForFeedback(root, sendFeedback, label, classes) {
  const problem = element("p", { className: "notice", hidden: true });
  problem.setAttribute("role", "alert");

  /**
   * @param {boolean} correct
   * @param {string | null} truth
   */
  async function send(correct, truth) {
    try {
      await sendFeedback(correct, truth);
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
      problem.hidden = false;
      return;
    }
    const thanks = element("p", { tabIndex: -1 }, `Thank you. Noted: ${truth ?? "something else"}.`);
    root.replaceChildren(thanks);
    thanks.focus(); // the pressed button no longer exists
  }

  const right = button("Right", () => send(true, label));
  const wrong = button("Wrong", () => {
    choice.hidden = !choice.hidden;
    wrong.setAttribute("aria-expanded", String(!choice.hidden));
    choice.scrollIntoView({ block: "nearest" });
  });
  wrong.setAttribute("aria-expanded", "false");

  const others = classes.filter((name) => name !== label);
  const choice = element(
    "fieldset",
    { hidden: true },
    element("legend", {}, "What is it?"),
    ...others.map((name) => button(name, () => send(false, name))),
    button("something else", () => send(false, null)),
  );
  const question = element("div", { className: "buttons" }, element("span", {}, `Is “${label}” right?`), right, wrong);
  root.replaceChildren(question, choice, problem);
}

/**
 * @param {string} text
 * @param {() => void} onClick
 */
function button(text, onClick) {
  const created = element("button", { type: "button" }, text);
  created.addEventListener("click", onClick);
  return created;
}
