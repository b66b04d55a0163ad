// @ts-check
/** Right or wrong? And if it was wrong, what is it? */

import { sendFeedback } from "./api.js";
import { element } from "./dom.js";

/**
 * @param {HTMLElement} root
 * @param {string} requestId
 * @param {string} label What the network said.
 * @param {readonly string[]} classes
 */
export function askWhetherRight(root, requestId, label, classes) {
  const problem = element("p", { className: "notice", hidden: true });
  problem.setAttribute("role", "alert");

  /**
   * @param {boolean} correct
   * @param {string | null} truth
   */
  async function send(correct, truth) {
    try {
      await sendFeedback(requestId, correct, truth);
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
      problem.hidden = false;
      return;
    }
    const noted = truth === null ? "something else" : truth;
    const thanks = element("p", { tabIndex: -1 }, `Thank you. Noted: ${noted}.`);
    root.replaceChildren(thanks);
    thanks.focus(); // the button that was pressed is gone
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
 * @param {() => void} press
 */
function button(text, press) {
  const made = element("button", { type: "button" }, text);
  made.addEventListener("click", press);
  return made;
}
