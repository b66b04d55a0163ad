// @ts-check
/** DOM helpers that the other modules share. */

/**
 * Return an element of index.html.
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
 * Create an element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, unknown>} [properties] Properties of the element; they are not attributes.
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}

const status = byId("say");

/**
 * Have a screen reader read a text out when it has finished its current sentence.
 * @param {string} text
 */
export function announce(text) {
  status.textContent = text;
}

/**
 * Show one panel, hide the others, and scroll to it if necessary.
 * @param {"welcome" | "single" | "several" | "camera"} name
 */
export function showPanel(name) {
  for (const panel of ["welcome", "single", "several", "camera"]) byId(panel).hidden = panel !== name;
  const answer = byId("answer");
  const { top } = answer.getBoundingClientRect();
  if (name === "welcome" || (top >= 0 && top < innerHeight / 4)) return;
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
  answer.scrollIntoView({ block: "start", behavior: reducedMotion ? "auto" : "smooth" }); // on a phone it is below the fold
}

const notice = byId("notice");

/**
 * Show a message about a problem; null hides it.
 * @param {string | null} text
 */
export function showNotice(text) {
  notice.textContent = text ?? "";
  notice.hidden = !text;
  if (text) notice.scrollIntoView({ block: "nearest" }); // on a phone it may be far from what was tapped
}
