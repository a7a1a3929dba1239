// The sliders that decide a mask, and what options they stand for.

import { byId } from "./dom.js";

export class Sliders {
  #first = {};
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
      this.load(this.#first);
      changed(this.options);
      this.#threshold.focus();
    });
  }

  /** Start from a job's options. */
  load(options) {
    this.#first = options;
    this.ownThreshold = false;
    const known = Object.values(options.class_thresholds ?? {});
    const { background_threshold: threshold, background_power: power } = options;
    // A segmenter has a background of its own: there is no threshold to move.
    byId("threshold-row").hidden = threshold === undefined && power === undefined;
    this.#threshold.value = known.length === 1 ? known[0] : threshold ?? 0.4;
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

  #tell() {
    const many = Object.keys(this.#first.class_thresholds ?? {}).length > 1;
    const { background_power: power } = this.#first;
    const kept = power === undefined ? "per class" : "by rule";
    const words = !this.ownThreshold && (many || power !== undefined) ? kept : Number(this.#threshold.value).toFixed(2);
    byId("threshold-value").textContent = words;
    this.#threshold.setAttribute("aria-valuetext", words);
    byId("confidence-value").textContent = Number(this.#confidence.value).toFixed(2);
    byId("reset").hidden = !this.moved;
  }
}

/** A slider stands on hundredths. */
const closest = (value) => Math.round(value * 100) / 100;
