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

/** @type {WeakMap<Answer, Promise<boolean>>} The newest feedback on each answer. */
const newest = new WeakMap();

/**
 * Send feedback and keep it in the answer, for the other view of it. Feedback on one answer is sent one after the
 * other, as a request may overtake an earlier one; what is replaced while it waits is not sent. (The arrow keys
 * choose each entry of a menu on the way to the wanted one.)
 * @param {Answer} answer
 * @param {Feedback} feedback
 * @returns {Promise<boolean>} Whether it has not been replaced.
 */
function give(answer, feedback) {
  const isNewest = () => newest.get(answer) === sent;
  /** @type {Promise<boolean>} */
  const sent = (newest.get(answer) ?? Promise.resolve(true))
    .catch(() => {})
    .then(async () => {
      if (!isNewest()) return false;
      await answer.sendFeedback?.(feedback);
      answer.feedback = feedback;
      if (isNewest()) answer.onFeedback?.(feedback);
      return isNewest();
    });
  newest.set(answer, sent);
  return sent;
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
      if (!(await give(answer, feedback))) return;
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
    // Disabled, too: iPhones show hidden entries, and this one would count as the first choice.
    element("option", { value: "", hidden: true, disabled: true, selected: true }, "Is it right?"),
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
      if (!(await give(answer, choice))) return;
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
