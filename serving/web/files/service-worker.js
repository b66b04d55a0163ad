// @ts-check
/** Keeps a copy of every file of the page, so that it opens without a connection, and serves the page from it. */

/** Sets `self.BUNDLE`. A change of any file changes files.js, which makes the browser install this script anew. */
importScripts("files.js");

/** @type {{version: string, policy: string, files: Record<string, string>}} `files`: integrity by path. */
const { version, policy, files } = self.BUNDLE;
const prefix = `cifar-mlflow ${self.registration.scope} `; // a host may serve several pages of one origin
const name = prefix + version;

self.addEventListener("install", (event) => event.waitUntil(store()));

async function store() {
  const cache = await caches.open(name);
  await Promise.all(Object.entries(files).map(([path, integrity]) => storeFile(cache, path, integrity)));
  await self.skipWaiting();
}

/**
 * Store a file; fail if the host has another version of it, as an update may be half done.
 * @param {Cache} cache
 * @param {string} path
 * @param {string} integrity
 */
async function storeFile(cache, path, integrity) {
  const response = await fetch(path, { integrity, cache: "no-cache" });
  if (!response.ok) throw new Error(`${path}: status ${response.status}`);
  // The policy of the page does not apply to its worker, and many static hosts cannot send one.
  const headers = { "Content-Type": response.headers.get("Content-Type") ?? "", "Content-Security-Policy": policy };
  await cache.put(path, new Response(response.body, { headers }));
}

self.addEventListener("activate", (event) => event.waitUntil(takeOver()));

async function takeOver() {
  const old = (await caches.keys()).filter((key) => key.startsWith(prefix) && key !== name);
  await Promise.all(old.map((key) => caches.delete(key)));
  await self.clients.claim();
}

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !url.href.startsWith(self.registration.scope)) return;
  const path = url.href.slice(self.registration.scope.length).replace(/[?#].*/, "");
  event.respondWith(serve(event.request, path === "index.html" ? "./" : path || "./"));
});

/**
 * @param {Request} request
 * @param {string} path Relative to the page.
 */
async function serve(request, path) {
  const cache = await caches.open(name);
  return (await cache.match(new URL(path, self.registration.scope).href)) ?? fetch(request);
}
