// The files of a result: those that the service keeps, and the mask and the overlay as the sliders made them.

import * as api from "./api.js";
import { byId, make, save } from "./dom.js";
import { voc } from "./palette.js";
import { labelMapPng } from "./png.js";

const WORDS = {
  coco: "COCO", polygons: "Polygons", label_studio: "Label Studio", cvat: "CVAT", confidence: "Confidence PNG",
  scores: "Scores NPZ",
};
const OURS = ["self", "mask", "overlay", "events"];

/** Draw the buttons; `result` has document, decision, maps, moved, options and `overlayPng()`; `fail` takes errors. */
export function drawDownloads(result, fail) {
  const { links } = result.document;
  const kept = Object.entries(links).filter(([name, path]) => typeof path === "string" && !OURS.includes(name));
  const stem = `mask-${result.document.id.slice(0, 8)}`;
  const offered = [
    ["Mask PNG", () => maskPng(result), `${stem}.png`],
    ["Overlay PNG", () => result.overlayPng(), `${stem}-overlay.png`],
    ...kept.map(([name, path]) => [
      WORDS[name] ?? name.replaceAll("_", " "), () => api.file(path), `${stem}-${path.split("/").pop()}`,
    ]),
    ["Job JSON", () => jobJson(result), `${stem}.json`],
  ];
  byId("downloads").replaceChildren(...offered.map(([words, fetch, name]) => {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => Promise.resolve(fetch()).then((blob) => save(blob, name), fail));
    return button;
  }));
}

/** The service's own file, or the same kind of file of what the sliders made. */
function maskPng({ document, decision, maps, moved, options }) {
  if (!moved) return api.file(document.links.mask);
  const { name, version } = document.model;
  const text = { Software: "semples", Model: `${name} ${version}`, Labels: maps.names.join(", "), Options: JSON.stringify(options) };
  return labelMapPng(decision.labelMap, maps.width, maps.height, voc, text);
}

function jobJson({ document }) {
  return new Blob([JSON.stringify(document, null, 2)], { type: "application/json" });
}
