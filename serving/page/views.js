// @ts-check
/**
 * Lets the browser's back button close what is open: a dialog, the camera, or a photo of the grid in full. Each open
 * view has an entry in the history of the tab; the state of an entry is the number of views that are open there.
 */

/** @type {(() => void)[]} What closes each open view, the newest last. */
const views = [];
/** @type {number} Of the current entry. A reload and the forward button lead to entries of views that are closed. */
let entry = history.state?.views ?? 0;
let travelling = false;

history.scrollRestoration = "manual"; // the page stays where it is when a view above it is closed
update();

/** @param {() => void} close Called when the user goes back. */
export function viewOpened(close) {
  if (!views.includes(close)) views.push(close);
  queueMicrotask(update); // not at once: a view that replaces another one keeps the entry
}

/** @param {() => void} close As given to `viewOpened`; has no effect if that view is not open. */
export function viewClosed(close) {
  if (!views.includes(close)) return;
  views.splice(views.indexOf(close), 1);
  queueMicrotask(update);
}

/** Add an entry for each view that was opened, or leave those of the views that were closed. */
function update() {
  if (travelling) return; // the browser goes back later, and tells so by popstate
  while (entry < views.length) history.pushState({ views: ++entry }, "");
  travelling = entry > views.length;
  if (travelling) history.go(views.length - entry);
}

addEventListener("popstate", ({ state }) => {
  entry = state?.views ?? 0;
  if (travelling) {
    travelling = false;
    update();
  } else {
    for (const close of views.splice(entry).reverse()) close();
  }
});
