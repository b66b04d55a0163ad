// @ts-check
/** The few things every other module does with the document. */

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return /** @type {T} */ (found);
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, unknown>} [properties] Properties of the element, not attributes.
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const say = byId("say");

/**
 * Have a screen reader say something when it comes to it.
 * @param {string} text
 */
export function announce(text) {
  say.textContent = text;
}

/**
 * Show one of the panels beside the pictures and none of the others, where the user sees it.
 * @param {"welcome" | "single" | "several" | "camera"} name
 */
export function showPanel(name) {
  for (const panel of ["welcome", "single", "several", "camera"]) byId(panel).hidden = panel !== name;
  const answer = byId("answer");
  const { top } = answer.getBoundingClientRect();
  if (name === "welcome" || (top >= 0 && top < innerHeight / 2)) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  answer.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" }); // on a phone it is far below
}

const notice = byId("notice");

/**
 * Say in words what went wrong; null takes the words away.
 * @param {string | null} text
 */
export function tell(text) {
  notice.textContent = text ?? "";
  notice.hidden = !text;
}
