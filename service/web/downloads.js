// The files of a result: as the service makes them of what the sliders say, and the overlay as it is shown.

import * as api from "./api.js";
import { byId, make, save } from "./dom.js";

const WORDS = {
  mask: "Mask PNG", confidence: "Confidence PNG", scores: "Scores NPZ",
  coco: "COCO", polygons: "Polygons", label_studio: "Label Studio", cvat: "CVAT",
};
const NOT_OFFERED = ["self", "events", "overlay"];
// Files that the service can decide anew, and those that name the photo.
const NAMED = ["coco", "polygons", "label_studio", "cvat"];
const DECIDED = ["mask", "confidence", ...NAMED];

/** Draw a button for each file; `result` is a Result; `fail` takes errors. */
export function drawDownloads(result, fail) {
  const { id, links } = result.document;
  const stem = `mask-${id.slice(0, 8)}`;
  const kept = Object.entries(links).filter(([name, path]) => typeof path === "string" && !NOT_OFFERED.includes(name));
  const [mask, ...others] = kept.map(([name, path]) => [
    WORDS[name] ?? name.replaceAll("_", " "), () => api.file(path + query(result, name)), `${stem}-${path.split("/").pop()}`,
  ]);
  const offered = [
    mask,
    ["Overlay PNG", () => result.overlayPng(), `${stem}-overlay.png`],
    ...others,
    ["Job JSON", () => jobJson(result), `${stem}.json`],
  ];
  byId("downloads").replaceChildren(...offered.map(([words, fetch, name]) => {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => Promise.resolve(fetch()).then((blob) => save(blob, name)).catch(fail));
    return button;
  }));
}

function query({ photo, options, moved, ownThreshold }, name) {
  const asked = new URLSearchParams();
  if (moved && DECIDED.includes(name)) {
    asked.set("min_confidence", options.min_confidence);
    if (ownThreshold) asked.set("background_threshold", options.background_threshold);
  }
  if (NAMED.includes(name) && photo?.file.name) asked.set("image", photo.file.name);
  return asked.size ? `?${asked}` : "";
}

function jobJson({ document }) {
  return new Blob([JSON.stringify(document, null, 2)], { type: "application/json" });
}
