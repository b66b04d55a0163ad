// @ts-check
/** Formats numbers and lists for people. */

/**
 * @param {number} share 0..1
 * @returns {string} Never "0%" or "100%": a network is never that sure.
 */
export function percent(share) {
  if (share < 0.01) return "<1%";
  if (share > 0.99) return ">99%";
  return `${Math.round(share * 100)}%`;
}

/** @param {number} ms */
export function milliseconds(ms) {
  return ms < 10 ? ms.toFixed(1) : Math.round(ms).toString();
}

/**
 * @param {readonly string[]} words
 * @returns {string} "a, b and c"
 */
export function joinWords(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
