// @ts-check
/** Numbers as people say them. */

/**
 * @param {number} share 0..1
 * @returns {string} Never "0%" or "100%", which would claim more than a network knows.
 */
export function percent(share) {
  if (share < 0.01) return "<1%";
  if (share > 0.99) return ">99%";
  return `${Math.round(share * 100)}%`;
}

/**
 * @param {readonly string[]} words
 * @returns {string} "a, b and c"
 */
export function listing(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
