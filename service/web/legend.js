// The table of a result: each class's color, area, confidence and alignment, and whether it is shown.

import { byId, make, percent } from "./dom.js";
import { vivid, voc } from "./palette.js";

export class Legend {
  #hidden = new Set();

  /** `changed` is called when a class is shown or hidden. */
  constructor(changed) {
    this.changed = changed;
  }

  /** Whether a value of the label map is shown. */
  shown = (index) => index !== 0 && !this.#hidden.has(index);

  reset() {
    this.#hidden.clear();
  }

  /** Draw rows; `classes` as a job's, with new areas and confidences; without alignment once these are `moved`. */
  draw(classes, ignored, { moved }) {
    const rows = classes.map((each) => this.#row(each, moved));
    if (ignored > 0) rows.push(this.#row({ index: 255, name: "Unsure", area: ignored }, true));
    const focused = document.activeElement?.dataset?.index;
    byId("legend").replaceChildren(...rows);
    if (focused) byId("legend").querySelector(`[data-index="${focused}"]`)?.focus();
  }

  #row({ index, name, area, confidence, alignment_class: own, alignment_background: other, zero_shot: guessed }, moved) {
    const box = make("input", { type: "checkbox", checked: !this.#hidden.has(index), "data-index": index });
    box.addEventListener("change", () => {
      if (box.checked) this.#hidden.delete(index);
      else this.#hidden.add(index);
      this.changed();
    });
    const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
    // The mask's file has VOC's colors, pictures over the photo have brighter ones.
    swatch.style.setProperty("--voc", css(voc, index));
    swatch.style.setProperty("--vivid", css(vivid, index));
    const [near, far] = [own, other].map((cosine) => cosine?.toFixed(2) ?? "–");
    const fit = moved || near === "–" ? "–" : `${near}/${far}`;
    const note = guessed ? make("span", { className: "soft small" }, " not trained on") : null;
    return make("tr", {},
      make("th", { scope: "row" }, make("label", {}, box, swatch, make("span", {}, name, note))),
      ...[percent(area), confidence ? confidence.toFixed(2) : "–", fit].map((words) => make("td", {}, words)));
  }
}

const css = (palette, index) => `rgb(${palette.subarray(3 * index, 3 * index + 3).join(" ")})`;
