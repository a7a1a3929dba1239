// A finished job on the screen: its views, its sliders, its legend, its files.

import * as api from "./api.js";
import { Decider } from "./decider.js";
import { byId, say } from "./dom.js";
import { drawDownloads } from "./downloads.js";
import * as draw from "./draw.js";
import { stretch } from "./decide.js";
import { Legend } from "./legend.js";
import { readMaps } from "./maps.js";
import { canvasOf, pixels, shownShape, toPng } from "./photo.js";
import { Sliders } from "./sliders.js";

export class Result {
  #sliders = new Sliders(() => this.#decider.decide(this.#sliders.options));
  #legend = new Legend(() => this.#paint());
  #decider = new Decider((decision) => this.#show(decision));
  #pixels = null;
  #cams = null;
  #ready = () => {};

  /** `fail` is called with what goes wrong. */
  constructor(fail) {
    this.fail = fail;
    byId("views").addEventListener("change", () => this.#paint());
    byId("opacity").addEventListener("input", () => this.#paint());
  }

  get moved() {
    return this.#sliders.moved;
  }

  get ownThreshold() {
    return this.#sliders.ownThreshold;
  }

  get options() {
    return this.#sliders.options;
  }

  /** Show a finished job; `photo` may be missing. Resolves once the mask is on the screen. */
  async load(document, photo, { signal }) {
    const maps = await readMaps(await api.file(document.links.scores, { signal }));
    Object.assign(this, { document, maps, photo, decision: null });
    this.shape = shownShape(maps);
    this.#pixels = pixels(photo, this.shape);
    this.#cams = maps.indices.length ? stretch(maps.cams, this.shape.height, this.shape.width) : null;
    byId("cams-name").textContent = maps.hasCams ? "CAMs" : "Scores";
    this.#legend.reset();
    this.#sliders.load(document.options, maps.names);
    this.#decider.load(maps, this.shape);
    this.#decider.decide(document.options);
    await new Promise((resolve) => { this.#ready = resolve; });
  }

  /** The overlay in the photo's own size. */
  overlayPng() {
    const { maps, photo, decision } = this;
    const picture = draw.overlay(pixels(photo, maps), draw.fit(decision.labelMap, decision, maps), this.#look());
    const canvas = canvasOf(maps.width, maps.height);
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return toPng(canvas);
  }

  #show(decision) {
    const first = !this.decision;
    this.decision = decision;
    this.small = draw.fit(decision.labelMap, decision, this.shape);
    const known = new Map((this.document.classes ?? []).map((each) => [each.index, each]));
    const classes = decision.classes.map((each, k) => ({ name: this.maps.names[k], ...known.get(each.index), ...each }));
    this.#legend.draw(classes, decision.ignored, { moved: this.moved });
    this.#paint();
    if (!first) return;
    this.#describe();
    drawDownloads(this, this.fail);
    this.#ready();
  }

  #look() {
    return { opacity: byId("opacity").value / 100, shown: this.#legend.shown };
  }

  #paint() {
    if (!this.decision) return;
    const { width, height } = this.shape;
    const view = byId("views").querySelector(":checked").value;
    const canvas = byId("canvas");
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    document.body.dataset.view = view;
    canvas.getContext("2d").putImageData(this.#picture(view), 0, 0);
    canvas.setAttribute("aria-label", `${this.#names() || "Nothing"}: ${view} of the photo`);
    byId("opacity-row").hidden = !["overlay", "cams"].includes(view);
    byId("opacity-value").textContent = `${byId("opacity").value} %`;
  }

  #picture(view) {
    const { width, height } = this.shape;
    if (view === "mask") return draw.mask(this.small, width, height, this.#look());
    if (view === "overlay") return draw.overlay(this.#pixels, this.small, this.#look());
    if (view === "cams" && this.#cams) return draw.soft(this.#pixels, this.#cams, this.maps.indices, this.#look());
    return this.#pixels;
  }

  #names() {
    return this.maps.names.join(", ");
  }

  #describe() {
    const { model, options, timings } = this.document;
    const seconds = timings ? `, ${timings.model.toFixed(1)} s` : "";
    byId("origin").textContent = `${model.name} ${model.version.slice(0, 8)}, refinement ${options.refine.replaceAll("+", ", ")}${seconds}${this.photo ? "" : ". The photo itself is no longer in this browser"}`;
    byId("result-title").textContent = this.maps.names.length ? "What was found" : "Nothing was found";
    say(`Done: ${this.#names() || "nothing found"}`);
  }
}
