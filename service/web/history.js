// Jobs posted from this browser: entries in localStorage, photos in IndexedDB. The page works without either.

import { byId, make } from "./dom.js";

const KEY = "semples-history";
const MAX_ENTRIES = 24;

function readEntries() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

function writeEntries(entries) {
  try {
    localStorage.setItem(KEY, JSON.stringify(entries));
  } catch {
    // Full or forbidden: the page works without a history.
  }
}

/** Put a job first, new or not; the oldest entries are deleted. */
export function add(entry, file) {
  const entries = [entry, ...readEntries().filter(({ id }) => id !== entry.id)];
  for (const { id } of entries.splice(MAX_ENTRIES)) withPhotos("readwrite", (photos) => photos.delete(id));
  writeEntries(entries);
  withPhotos("readwrite", (photos) => photos.put(file, entry.id));
}

function remove(id) {
  writeEntries(readEntries().filter((entry) => entry.id !== id));
  withPhotos("readwrite", (photos) => photos.delete(id));
}

/** Return the file that was posted for a job, or undefined. */
export const photoOf = (id) => withPhotos("readonly", (photos) => photos.get(id));

function withPhotos(mode, use) {
  return new Promise((resolve) => {
    const fail = () => resolve(undefined);
    const opening = indexedDB.open("semples", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("photos");
    opening.onerror = fail;
    opening.onsuccess = () => {
      const request = use(opening.result.transaction("photos", mode).objectStore("photos"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = fail;
    };
  });
}

/** Draw the list; `open` is called with the entry that is clicked. */
export function draw(open) {
  const entries = readEntries();
  byId("history").hidden = !entries.length;
  byId("entries").replaceChildren(...entries.map((entry) => row(entry, open)));
}

function row(entry, open) {
  const title = entry.labels.join(", ") || "Whatever it shows";
  const time = new Date(entry.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const openButton = make("button", { type: "button", className: "entry" },
    entry.thumb ? make("img", { src: entry.thumb, alt: "", width: 60, height: 60 }) : null,
    make("span", {}, make("strong", {}, title), make("span", { className: "soft small" }, time)));
  openButton.addEventListener("click", () => open(entry));
  const deleteButton = make("button", { type: "button", className: "quiet", "aria-label": `Delete ${title}, ${time}` }, "×");
  deleteButton.addEventListener("click", () => {
    remove(entry.id);
    draw(open);
    (byId("entries").querySelector("button") ?? byId("label")).focus();
  });
  return make("li", {}, openButton, deleteButton);
}
