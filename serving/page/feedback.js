// @ts-check
/**
 * Asks the user whether a prediction is right, and if not, for the correct class. Later feedback on the same answer
 * replaces the earlier.
 */

import { announce, element, showNotice } from "./dom.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Feedback} Feedback */

/**
 * List what the user can say about an answer: that it is right, each other class, and "something else".
 * @param {Answer} answer
 * @param {readonly string[]} classes
 * @returns {Feedback[]}
 */
function choicesFor({ prediction: { label } }, classes) {
  const others = classes.filter((name) => name !== label).map((name) => ({ correct: false, label: name }));
  return [{ correct: true, label }, ...others, { correct: false, label: null }];
}

/** @param {Feedback} feedback */
const nameOf = ({ label }) => label ?? "something else";

/**
 * Send feedback and keep it in the answer, for the other view of it.
 * @param {Answer} answer
 * @param {Feedback} feedback
 */
async function give(answer, feedback) {
  await answer.sendFeedback?.(feedback);
  answer.feedback = feedback;
  answer.onFeedback?.(feedback);
}

/**
 * Show the question below a prediction, or the feedback that was given before.
 * @param {HTMLElement} root
 * @param {Answer} answer
 * @param {readonly string[]} classes
 */
export function askForFeedback(root, answer, classes) {
  if (answer.feedback) showGiven(root, answer, classes);
  else showQuestion(root, answer, classes);
}

/**
 * @param {HTMLElement} root
 * @param {Answer} answer
 * @param {readonly string[]} classes
 */
function showQuestion(root, answer, classes) {
  const problem = element("p", { className: "notice", hidden: true });
  problem.setAttribute("role", "alert");

  /** @param {Feedback} feedback */
  async function send(feedback) {
    try {
      await give(answer, feedback);
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      if (!problem.isConnected) showNotice(`The feedback on an earlier photo was lost. ${message}`);
      problem.textContent = message;
      problem.hidden = false;
      return;
    }
    if (!problem.isConnected) return; // `root` shows another answer by now
    showGiven(root, answer, classes).focus(); // the pressed button no longer exists
  }

  const [yes, ...others] = choicesFor(answer, classes);
  const right = button("Right", () => send(yes));
  const wrong = button("Wrong", () => {
    choice.hidden = !choice.hidden;
    wrong.setAttribute("aria-expanded", String(!choice.hidden));
    choice.scrollIntoView({ block: "nearest" });
  });
  wrong.setAttribute("aria-expanded", "false");

  const choice = element(
    "fieldset",
    { hidden: true },
    element("legend", {}, "What is it?"),
    ...others.map((other) => button(nameOf(other), () => send(other))),
  );
  const question = element("span", {}, `Is “${answer.prediction.label}” right?`);
  root.replaceChildren(element("div", { className: "buttons" }, question, right, wrong), choice, problem);
}

/**
 * @param {HTMLElement} root
 * @param {Answer} answer
 * @param {readonly string[]} classes
 * @returns {HTMLElement} The text, which can be focused.
 */
function showGiven(root, answer, classes) {
  const given = /** @type {Feedback} */ (answer.feedback);
  const thanks = element("p", { tabIndex: -1 }, `Thank you. Noted: ${nameOf(given)}.`);
  const change = button("Change", () => {
    showQuestion(root, answer, classes);
    root.querySelector("button")?.focus();
  });
  root.replaceChildren(element("div", { className: "buttons" }, thanks, change));
  return thanks;
}

/**
 * Return a menu that gives feedback, for a place that is too small for buttons.
 * @param {Answer} answer
 * @param {readonly string[]} classes
 * @param {string} name Of the photo, for screen readers.
 */
export function feedbackMenu(answer, classes, name) {
  const choices = choicesFor(answer, classes);
  const [right, ...others] = choices.map((choice, index) =>
    element("option", { value: String(index) }, choice.correct ? "Right" : nameOf(choice)),
  );
  const menu = element(
    "select",
    { className: "menu" },
    element("option", { value: "", hidden: true }, "Is it right?"),
    right,
    element("optgroup", { label: "Wrong, it is:" }, ...others),
  );
  menu.setAttribute("aria-label", `Feedback on ${name}`);

  function showCurrent() {
    const { feedback } = answer;
    const index = choices.findIndex((choice) => choice.label === feedback?.label);
    menu.value = feedback ? String(index) : "";
  }
  answer.onFeedback = showCurrent;
  menu.addEventListener("change", async () => {
    const choice = choices[Number(menu.value)];
    try {
      await give(answer, choice);
      showNotice(null);
      announce(`Noted: ${nameOf(choice)}.`);
    } catch (error) {
      showCurrent();
      showNotice(/** @type {Error} */ (error).message);
    }
  });
  return menu;
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
