// Choosing a model and a refinement.

import { byId, make } from "./dom.js";

export class Models {
  #known = [];

  /** `changed` is called when another model is chosen. */
  constructor(changed) {
    this.changed = changed;
    byId("model").addEventListener("change", () => this.#tell());
  }

  /** Take over what GET /models says. */
  set({ default: first, default_segment: segmenting, models }) {
    this.#known = models;
    byId("model").replaceChildren(...models.map(({ model, ready }) => {
      const name = `${model.name}${ready ? "" : " (starting)"}`;
      return make("option", { value: model.name, selected: model.name === (first ?? segmenting) }, name);
    }));
    this.#tell();
  }

  get #model() {
    return this.#known.find(({ model }) => model.name === byId("model").value)?.model;
  }

  get classes() {
    return this.#model?.classes ?? [];
  }

  get canSegment() {
    return Boolean(this.#model?.can_segment);
  }

  get isOpen() {
    return Boolean(this.#model?.open_vocabulary);
  }

  get chosen() {
    const vocabulary = this.isOpen && byId("open").checked ? "open" : "";
    return { model: this.#model?.name, refine: byId("refine").value, vocabulary };
  }

  #tell() {
    const model = this.#model;
    const free = model?.can_segment ? "can look without labels" : "needs labels";
    byId("model-note").textContent = model ? `Knows ${model.classes.length} classes, ${free}.` : "No model is up yet.";
    byId("open-row").hidden = !this.isOpen;
    byId("refine-default").textContent = model ? `As the model does (${model.refine.replaceAll("+", ", ")})` : "As the model does";
    this.changed();
  }
}
