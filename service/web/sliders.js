// The sliders that decide a mask, and what options they stand for.

import { byId } from "./dom.js";

export class Sliders {
  #first = {};
  #names = [];
  #threshold = byId("threshold");
  #confidence = byId("confidence");

  /** `changed` is called with the options whenever a person moves one. */
  constructor(changed) {
    for (const input of [this.#threshold, this.#confidence]) {
      input.addEventListener("input", () => {
        if (input === this.#threshold) this.ownThreshold = true;
        this.#tell();
        changed(this.options);
      });
    }
    byId("reset").addEventListener("click", () => {
      this.load(this.#first, this.#names);
      changed(this.options);
      this.#threshold.focus();
    });
  }

  /** Start from the options of a job and the names of its classes. */
  load(options, names) {
    this.#first = options;
    this.#names = names;
    this.ownThreshold = false;
    const { background_threshold: threshold, background_power: power } = options;
    // A segmenter has a background of its own: there is no threshold to move.
    byId("threshold-row").hidden = threshold === undefined && power === undefined;
    this.#threshold.value = this.#thresholds[0] ?? threshold ?? 0.4;
    this.#confidence.value = options.min_confidence;
    this.#tell();
  }

  get moved() {
    return this.ownThreshold || Number(this.#confidence.value) !== Number(closest(this.#first.min_confidence));
  }

  /** A job's options; once the threshold is moved, it holds for every class. */
  get options() {
    if (!this.moved) return this.#first;
    const options = { ...this.#first, min_confidence: Number(this.#confidence.value) };
    if (!this.ownThreshold) return options;
    const { background_power: _, ...rest } = options;
    return { ...rest, background_threshold: Number(this.#threshold.value), class_thresholds: {} };
  }

  /** The constant thresholds of a job's classes, each once. */
  get #thresholds() {
    const { background_threshold: threshold, class_thresholds: own = {} } = this.#first;
    return threshold === undefined ? [] : [...new Set(this.#names.map((name) => own[name] ?? threshold))];
  }

  #kept() {
    const [first, ...others] = this.#thresholds;
    if (first === undefined) return "by rule";
    return others.length ? "per class" : first.toFixed(2);
  }

  #tell() {
    const words = this.ownThreshold ? Number(this.#threshold.value).toFixed(2) : this.#kept();
    byId("threshold-value").textContent = words;
    this.#threshold.setAttribute("aria-valuetext", words);
    byId("confidence-value").textContent = Number(this.#confidence.value).toFixed(2);
    byId("reset").hidden = !this.moved;
  }
}

/** A slider stands on hundredths. */
const closest = (value) => Math.round(value * 100) / 100;
