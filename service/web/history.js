// What this browser posted: small entries in localStorage, the photos themselves in IndexedDB, both best effort.

import { byId, make } from "./dom.js";

const KEY = "semples-history";
const MOST = 24;

export function entries() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

function write(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list));
  } catch {
    // Full or forbidden: the page works without a history.
  }
}

/** Put a job first, whether it is new or not; the oldest make room. */
export function remember(entry, file) {
  const list = [entry, ...entries().filter(({ id }) => id !== entry.id)];
  for (const { id } of list.splice(MOST)) withPhotos("readwrite", (photos) => photos.delete(id));
  write(list);
  if (file) withPhotos("readwrite", (photos) => photos.put(file, entry.id));
}

export function forget(id) {
  write(entries().filter((entry) => entry.id !== id));
  withPhotos("readwrite", (photos) => photos.delete(id));
}

/** Return the file that was posted for a job, or undefined. */
export const photoOf = (id) => withPhotos("readonly", (photos) => photos.get(id));

function withPhotos(mode, use) {
  return new Promise((resolve) => {
    const nothing = () => resolve(undefined);
    const opening = indexedDB.open("semples", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("photos");
    opening.onerror = nothing;
    opening.onsuccess = () => {
      const request = use(opening.result.transaction("photos", mode).objectStore("photos"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = nothing;
    };
  });
}

/** Draw the list; `open` is called with an entry. */
export function draw(open) {
  const list = entries();
  byId("history").hidden = !list.length;
  byId("entries").replaceChildren(...list.map((entry) => row(entry, open)));
}

function row(entry, open) {
  const words = entry.labels.join(", ") || "Whatever it shows";
  const time = new Date(entry.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const show = make("button", { type: "button", className: "entry" },
    entry.thumb ? make("img", { src: entry.thumb, alt: "", width: 60, height: 60 }) : null,
    make("span", {}, make("strong", {}, words), make("span", { className: "soft small" }, time)));
  show.addEventListener("click", () => open(entry));
  const drop = make("button", { type: "button", className: "quiet", "aria-label": `Delete ${words}, ${time}` }, "×");
  drop.addEventListener("click", () => {
    forget(entry.id);
    draw(open);
    (byId("entries").querySelector("button") ?? byId("label")).focus();
  });
  return make("li", {}, show, drop);
}
