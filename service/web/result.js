// The result of a finished job: its views, legend, sliders and downloads.

import * as api from "./api.js";
import { DecideWorker, readScores, upsampleBilinear } from "./decide.js";
import { announce, byId, make } from "./dom.js";
import { drawMask, drawOverlay, drawScores, photoPixels, resizeNearest, shownShape, toPng, vivid, voc } from "./draw.js";

export class Result {
  #sliders = new Sliders((options) => this.#worker.decide(options));
  #legend = new Legend(() => this.#paint());
  #worker = new DecideWorker((decision) => this.#show(decision));
  #pixels = null;
  #cams = null;
  #onFirst = () => {};

  /** `onError` is called with errors of downloads. */
  constructor(onError) {
    this.onError = onError;
    byId("views").addEventListener("change", () => this.#paint());
    byId("opacity").addEventListener("input", () => this.#paint());
  }

  /** Show a finished job; `photo` may be null. Resolves once the mask is on the screen. */
  async load(document, photo, { signal }) {
    const scores = await readScores(await api.file(document.links.scores, { signal }));
    Object.assign(this, { document, scores, photo, decision: null });
    this.shape = shownShape(scores);
    this.#pixels = photoPixels(photo, this.shape);
    this.#cams = scores.indices.length ? upsampleBilinear(scores.cams, this.shape.height, this.shape.width) : null;
    byId("cams-name").textContent = scores.hasCams ? "CAMs" : "Scores";
    this.#legend.reset();
    this.#sliders.load(document.options, scores.names);
    this.#worker.load(scores, this.shape);
    this.#worker.decide(document.options);
    await new Promise((resolve) => { this.#onFirst = resolve; });
  }

  #show(decision) {
    const isFirst = !this.decision;
    this.decision = decision;
    this.labelMap = resizeNearest(decision.labelMap, decision, this.shape);
    const known = new Map((this.document.classes ?? []).map((each) => [each.index, each]));
    const classes = decision.classes.map((each, k) => ({ name: this.scores.names[k], ...known.get(each.index), ...each }));
    this.#legend.draw(classes, decision.ignored, { moved: this.#sliders.moved });
    this.#paint();
    if (!isFirst) return;
    this.#describe();
    this.#drawDownloads();
    this.#onFirst();
  }

  get #look() {
    return { opacity: byId("opacity").value / 100, shown: this.#legend.shown };
  }

  #paint() {
    if (!this.decision) return;
    const view = byId("views").querySelector(":checked").value;
    const canvas = byId("canvas");
    const { width, height } = this.shape;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    document.body.dataset.view = view;
    canvas.getContext("2d").putImageData(this.#picture(view), 0, 0);
    canvas.setAttribute("aria-label", `${this.#names || "Nothing"}: ${view} of the photo`);
    byId("opacity-row").hidden = !["overlay", "cams"].includes(view);
    byId("opacity-value").textContent = `${byId("opacity").value} %`;
  }

  #picture(view) {
    if (view === "mask") return drawMask(this.labelMap, this.shape, this.#look);
    if (view === "overlay") return drawOverlay(this.#pixels, this.labelMap, this.#look);
    if (view === "cams" && this.#cams) return drawScores(this.#pixels, this.#cams, this.scores.indices, this.#look);
    return this.#pixels;
  }

  get #names() {
    return this.scores.names.join(", ");
  }

  #describe() {
    const { model, options, timings, image } = this.document;
    const seconds = timings ? `, ${timings.model.toFixed(1)} s` : "";
    const range = image?.value_range?.map((each) => each.toLocaleString("en"));
    byId("origin").textContent = [
      `${model.name} ${model.version.slice(0, 8)}, refinement ${options.refine.replaceAll("+", ", ")}${seconds}`,
      ...(range ? [`16-bit gray: its values, ${range[0]} to ${range[1]}, were read as black to white`] : []),
      ...(this.photo ? [] : ["The photo itself is no longer in this browser"]),
    ].join(". ");
    byId("result-title").textContent = this.scores.names.length ? "What was found" : "Nothing was found";
    announce(`Done: ${this.#names || "nothing found"}`);
  }

  #drawDownloads() {
    const files = downloads(this.document, {
      query: (name) => queryFor(name, this.#sliders, this.photo),
      overlay: () => this.#overlayPng(),
    });
    byId("downloads").replaceChildren(...files.map(([text, fetch, filename]) => {
      const button = make("button", { type: "button" }, text);
      button.addEventListener("click", () => Promise.resolve(fetch()).then((blob) => saveFile(blob, filename)).catch(this.onError));
      return button;
    }));
  }

  /** The overlay in the photo's own size. */
  #overlayPng() {
    const { scores, photo, decision } = this;
    const labelMap = resizeNearest(decision.labelMap, decision, scores);
    return toPng(drawOverlay(photoPixels(photo, scores), labelMap, this.#look));
  }
}

const FILE_NAMES = {
  mask: "Mask PNG", confidence: "Confidence PNG", scores: "Scores NPZ",
  coco: "COCO", polygons: "Polygons", label_studio: "Label Studio", cvat: "CVAT",
};
const NOT_OFFERED = ["self", "events", "overlay"];
const ANNOTATIONS = ["coco", "polygons", "label_studio", "cvat"]; // these name the photo
const WITH_THRESHOLDS = ["mask", "confidence", ...ANNOTATIONS]; // the service makes these for other thresholds too

/** Return the files that a job offers: [[text, function that returns a blob, filename]]. */
function downloads(document, { query, overlay }) {
  const stem = `mask-${document.id.slice(0, 8)}`;
  const links = Object.entries(document.links).filter(([name, path]) => typeof path === "string" && !NOT_OFFERED.includes(name));
  const [mask, ...others] = links.map(([name, path]) => [
    FILE_NAMES[name] ?? name.replaceAll("_", " "), () => api.file(path + query(name)), `${stem}-${path.split("/").pop()}`,
  ]);
  const jobJson = () => new Blob([JSON.stringify(document, null, 2)], { type: "application/json" });
  return [mask, ["Overlay PNG", overlay, `${stem}-overlay.png`], ...others, ["Job JSON", jobJson, `${stem}.json`]];
}

function queryFor(name, { options, moved, thresholdMoved }, photo) {
  const query = new URLSearchParams();
  if (moved && WITH_THRESHOLDS.includes(name)) {
    query.set("min_confidence", options.min_confidence);
    if (thresholdMoved) query.set("background_threshold", options.background_threshold);
  }
  if (ANNOTATIONS.includes(name) && photo?.file.name) query.set("image", photo.file.name);
  return query.size ? `?${query}` : "";
}

function saveFile(blob, filename) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The sliders for background threshold and minimum confidence. */
class Sliders {
  #jobOptions = {};
  #names = [];
  #threshold = byId("threshold");
  #confidence = byId("confidence");

  /** `onChange` is called with the options when a slider moves. */
  constructor(onChange) {
    for (const input of [this.#threshold, this.#confidence]) {
      input.addEventListener("input", () => {
        if (input === this.#threshold) this.thresholdMoved = true;
        this.#update();
        onChange(this.options);
      });
    }
    byId("reset").addEventListener("click", () => {
      this.load(this.#jobOptions, this.#names);
      onChange(this.options);
      this.#threshold.focus();
    });
  }

  /** Start from a job's options and the names of its classes. */
  load(options, names) {
    this.#jobOptions = options;
    this.#names = names;
    this.thresholdMoved = false;
    const { background_threshold: threshold, background_power: power } = options;
    // A segmenter has a background class: there is no threshold to move.
    byId("threshold-row").hidden = threshold === undefined && power === undefined;
    this.#threshold.value = this.#jobThresholds[0] ?? threshold ?? 0.4;
    this.#confidence.value = options.min_confidence;
    this.#update();
  }

  get moved() {
    const start = Math.round(this.#jobOptions.min_confidence * 100) / 100; // the slider's step is 0.01
    return this.thresholdMoved || Number(this.#confidence.value) !== start;
  }

  /** The job's options with what the sliders say; a moved threshold counts for every class. */
  get options() {
    if (!this.moved) return this.#jobOptions;
    const options = { ...this.#jobOptions, min_confidence: Number(this.#confidence.value) };
    if (!this.thresholdMoved) return options;
    const { background_power: _, ...rest } = options;
    return { ...rest, background_threshold: Number(this.#threshold.value), class_thresholds: {}, threshold_slope: 0 };
  }

  /** The different thresholds of the job's classes. */
  get #jobThresholds() {
    const { background_threshold: threshold, class_thresholds: perClass = {} } = this.#jobOptions;
    return threshold === undefined ? [] : [...new Set(this.#names.map((name) => perClass[name] ?? threshold))];
  }

  get #thresholdText() {
    if (this.thresholdMoved) return Number(this.#threshold.value).toFixed(2);
    const [first, ...others] = this.#jobThresholds;
    if (first === undefined) return "by rule";
    return others.length ? "per class" : first.toFixed(2);
  }

  #update() {
    byId("threshold-value").textContent = this.#thresholdText;
    this.#threshold.setAttribute("aria-valuetext", this.#thresholdText);
    byId("confidence-value").textContent = Number(this.#confidence.value).toFixed(2);
    byId("reset").hidden = !this.moved;
  }
}

/** The table of classes: color, area, confidence, alignment, and a checkbox that shows or hides each. */
class Legend {
  #hidden = new Set();

  /** `onChange` is called when a class is shown or hidden. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  /** Return whether a value of the label map is shown. */
  shown = (index) => index !== 0 && !this.#hidden.has(index);

  reset() {
    this.#hidden.clear();
  }

  /** Draw rows; `classes` as in a job's document; alignment is left out if the sliders have `moved`. */
  draw(classes, ignored, { moved }) {
    const rows = classes.map((each) => this.#row(each, moved));
    if (ignored > 0) rows.push(this.#row({ index: 255, name: "Unsure", area: ignored }, true));
    const focused = document.activeElement?.dataset?.index;
    byId("legend").replaceChildren(...rows);
    if (focused) byId("legend").querySelector(`[data-index="${focused}"]`)?.focus();
  }

  #row({ index, name, area, confidence, alignment_class: own, alignment_background: other, zero_shot: zeroShot }, moved) {
    const box = make("input", { type: "checkbox", checked: !this.#hidden.has(index), "data-index": index });
    box.addEventListener("change", () => {
      if (box.checked) this.#hidden.delete(index);
      else this.#hidden.add(index);
      this.onChange();
    });
    const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
    // The mask's file has VOC's colors, pictures over the photo have brighter ones.
    swatch.style.setProperty("--voc", cssColor(voc, index));
    swatch.style.setProperty("--vivid", cssColor(vivid, index));
    const [ownText, otherText] = [own, other].map((cosine) => cosine?.toFixed(2) ?? "–");
    const alignment = moved || ownText === "–" ? "–" : `${ownText}/${otherText}`;
    const note = zeroShot ? make("span", { className: "soft small" }, " not trained on") : null;
    return make("tr", {},
      make("th", { scope: "row" }, make("label", {}, box, swatch, make("span", {}, name, note))),
      ...[percent(area), confidence ? confidence.toFixed(2) : "–", alignment].map((text) => make("td", {}, text)));
  }
}

const cssColor = (palette, index) => `rgb(${palette.subarray(3 * index, 3 * index + 3).join(" ")})`;

const percent = (share) =>
  share === 0 ? "0 %" : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
