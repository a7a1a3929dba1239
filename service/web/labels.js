// The form's choices: labels (an editable combobox after WAI-ARIA's authoring practices, and chips), model, refinement.

import { announce, byId, make } from "./dom.js";

const MAX_OPTIONS = 80;
const normalize = (text) => text.toLowerCase().replace(/[_-]/g, " ").replace(/\s+/g, " ").trim();

/** Return the classes that a typed text may mean, those that begin with it first: [{name, hint}]. */
function search(classes, typed) {
  const text = normalize(typed);
  const found = [];
  for (const { name, synonyms = [] } of classes) {
    const names = [name, ...synonyms].map(normalize);
    const starts = names.some((each) => each.startsWith(text));
    if (!starts && !names.some((each) => each.includes(text))) continue;
    const synonym = normalize(name).includes(text) ? "" : synonyms.find((each) => normalize(each).includes(text));
    found.push({ name, hint: synonym || "", rank: starts ? 0 : 1 });
  }
  return found.sort((a, b) => a.rank - b.rank).slice(0, MAX_OPTIONS);
}

export class Labels {
  #classes = [];
  #chosen = [];
  #options = [];
  #active = -1;
  #input = byId("label");
  #list = byId("options");
  #chips = byId("chips");

  /** `onChange` is called when a label is added or removed. */
  constructor(onChange) {
    this.onChange = onChange;
    this.#input.addEventListener("input", () => this.#onInput());
    this.#input.addEventListener("click", () => this.#open());
    this.#input.addEventListener("blur", () => this.#close());
    this.#input.addEventListener("keydown", (event) => this.#onKey(event));
    // Keeps the focus where it is; the click itself chooses.
    this.#list.addEventListener("mousedown", (event) => event.preventDefault());
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#choose(option.dataset.name);
    });
  }

  get chosen() {
    return [...this.#chosen];
  }

  /** The classes of the chosen model, as in GET /models. */
  set classes(classes) {
    this.#classes = classes;
  }

  focus() {
    this.#input.focus();
  }

  /** Replace the chosen labels. */
  set(names) {
    this.#chosen = [...names];
    this.#drawChips();
  }

  /** Return the class that a text names, by its name or a synonym, or undefined. */
  find(text) {
    return this.#classes.find(({ name, synonyms = [] }) => [name, ...synonyms].map(normalize).includes(normalize(text)));
  }

  /** Choose what is typed but not yet chosen. */
  commitText() {
    for (const part of this.#input.value.split(",")) if (part.trim()) this.#add(part.trim());
    this.#input.value = "";
    this.#close();
  }

  #onInput() {
    if (this.#input.value.includes(",")) return this.commitText();
    this.#open();
    return announce(this.#options.length ? `${this.#options.length} labels` : "No such label");
  }

  #open() {
    const left = this.#classes.filter(({ name }) => !this.#chosen.includes(name));
    this.#options = search(left, this.#input.value);
    this.#list.replaceChildren(...this.#options.map(({ name, hint }, number) => make(
      "li", { id: `option-${number}`, role: "option", "aria-selected": "false", "data-name": name }, name,
      hint ? make("span", { className: "soft" }, ` ${hint}`) : null,
    )));
    this.#list.hidden = !this.#options.length;
    this.#input.setAttribute("aria-expanded", String(!this.#list.hidden));
    this.#highlight(this.#input.value.trim() ? 0 : -1);
  }

  #close() {
    this.#list.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#highlight(-1);
  }

  #highlight(number) {
    this.#list.children[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = this.#list.hidden ? -1 : Math.min(number, this.#options.length - 1);
    const option = this.#list.children[this.#active];
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (this.#list.hidden) this.#open();
      const count = this.#options.length;
      if (count) this.#highlight((Math.max(this.#active, step > 0 ? -1 : 0) + step + count) % count);
    } else if (event.key === "Enter" && (this.#active >= 0 || this.#input.value.trim())) {
      event.preventDefault();
      if (this.#active >= 0) this.#choose(this.#options[this.#active].name);
      else this.commitText();
    } else if (event.key === "Escape") {
      if (this.#list.hidden) this.#input.value = "";
      this.#close();
    } else if (event.key === "Backspace" && !this.#input.value && this.#chosen.length) {
      this.#remove(this.#chosen.at(-1));
    }
  }

  #choose(name) {
    this.#input.value = "";
    this.#close();
    this.#add(name);
  }

  #add(text) {
    const name = this.find(text)?.name ?? text; // the service refuses an unknown label and suggests others
    if (this.#chosen.includes(name)) return;
    this.#chosen.push(name);
    this.#drawChips();
    announce(`${name} chosen`);
  }

  #remove(name) {
    this.#chosen = this.#chosen.filter((each) => each !== name);
    this.#drawChips();
    announce(`${name} taken away`);
    this.#input.focus();
  }

  #drawChips() {
    this.#chips.replaceChildren(...this.#chosen.map((name) => {
      const button = make("button", { type: "button", "aria-label": `Take ${name} away` }, "×");
      button.addEventListener("click", () => this.#remove(name));
      return make("li", {}, name, button);
    }));
    this.onChange();
  }
}

/** The choice of a model and a refinement. */
export class Models {
  #models = [];

  /** `onChange` is called when another model is chosen. */
  constructor(onChange) {
    this.onChange = onChange;
    byId("model").addEventListener("change", () => this.#update());
  }

  /** Set the answer of GET /models. */
  set({ default: first, default_segment: segmenting, models }) {
    this.#models = models;
    byId("model").replaceChildren(...models.map(({ model, ready }) => {
      const text = `${model.name}${ready ? "" : " (starting)"}`;
      return make("option", { value: model.name, selected: model.name === (first ?? segmenting) }, text);
    }));
    this.#update();
  }

  get #model() {
    return this.#models.find(({ model }) => model.name === byId("model").value)?.model;
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

  /** The fields of a request. */
  get chosen() {
    const vocabulary = this.isOpen && byId("open").checked ? "open" : "";
    return { model: this.#model?.name, refine: byId("refine").value, vocabulary };
  }

  #update() {
    const model = this.#model;
    const needs = model?.can_segment ? "can look without labels" : "needs labels";
    byId("model-note").textContent = model ? `Knows ${model.classes.length} classes, ${needs}.` : "No model is up yet.";
    byId("open-row").hidden = !this.isOpen;
    byId("refine-default").textContent = model ? `As the model does (${model.refine.replaceAll("+", ", ")})` : "As the model does";
    this.onChange();
  }
}
