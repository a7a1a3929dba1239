// Choosing labels: an editable combobox with a list, as in WAI-ARIA's authoring practices, and chips of what is chosen.

import { byId, make, say } from "./dom.js";

const MOST_SHOWN = 80;
const fold = (words) => words.toLowerCase().replace(/[_-]/g, " ").replace(/\s+/g, " ").trim();

/** Return the classes that a text may mean, those that begin with it first: [{name, hint}]. */
export function matches(classes, typed) {
  const text = fold(typed);
  const found = [];
  for (const { name, synonyms = [] } of classes) {
    const names = [name, ...synonyms].map(fold);
    const starts = names.some((each) => each.startsWith(text));
    if (!starts && !names.some((each) => each.includes(text))) continue;
    const meant = fold(name).includes(text) ? "" : synonyms.find((each) => fold(each).includes(text));
    found.push({ name, hint: meant || "", rank: starts ? 0 : 1 });
  }
  return found.sort((a, b) => a.rank - b.rank).slice(0, MOST_SHOWN);
}

export class Labels {
  #classes = [];
  #chosen = [];
  #shown = [];
  #active = -1;
  #input = byId("label");
  #list = byId("options");
  #chips = byId("chips");

  /** `changed` is called when something was chosen or taken away. */
  constructor(changed) {
    this.changed = changed;
    this.#input.addEventListener("input", () => this.#type());
    this.#input.addEventListener("click", () => this.#open());
    this.#input.addEventListener("blur", () => this.#close());
    this.#input.addEventListener("keydown", (event) => this.#press(event));
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

  set classes(classes) {
    this.#classes = classes;
  }

  focus() {
    this.#input.focus();
  }

  /** Choose exactly these. */
  set(names) {
    this.#chosen = [...names];
    this.#draw();
  }

  /** Choose what is typed but not yet chosen. */
  settle() {
    for (const part of this.#input.value.split(",")) if (part.trim()) this.#add(part.trim());
    this.#input.value = "";
    this.#close();
  }

  #type() {
    if (this.#input.value.includes(",")) return this.settle();
    this.#open();
    return say(this.#shown.length ? `${this.#shown.length} labels` : "No such label");
  }

  #open() {
    const left = this.#classes.filter(({ name }) => !this.#chosen.includes(name));
    this.#shown = matches(left, this.#input.value);
    this.#list.replaceChildren(...this.#shown.map(({ name, hint }, number) => make(
      "li", { id: `option-${number}`, role: "option", "aria-selected": "false", "data-name": name }, name,
      hint ? make("span", { className: "soft" }, ` ${hint}`) : null,
    )));
    this.#list.hidden = !this.#shown.length;
    this.#input.setAttribute("aria-expanded", String(!this.#list.hidden));
    this.#mark(this.#input.value.trim() ? 0 : -1);
  }

  #close() {
    this.#list.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#mark(-1);
  }

  #mark(number) {
    this.#list.children[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = this.#list.hidden ? -1 : Math.min(number, this.#shown.length - 1);
    const option = this.#list.children[this.#active];
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #press(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (this.#list.hidden) this.#open();
      const count = this.#shown.length;
      if (count) this.#mark((Math.max(this.#active, step > 0 ? -1 : 0) + step + count) % count);
    } else if (event.key === "Enter" && (this.#active >= 0 || this.#input.value.trim())) {
      event.preventDefault();
      if (this.#active >= 0) this.#choose(this.#shown[this.#active].name);
      else this.settle();
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

  #add(typed) {
    const known = this.#classes.find(({ name, synonyms = [] }) => [name, ...synonyms].map(fold).includes(fold(typed)));
    const name = known?.name ?? typed; // the service knows best, and says what is near
    if (this.#chosen.includes(name)) return;
    this.#chosen.push(name);
    this.#draw();
    say(`${name} chosen`);
  }

  #remove(name) {
    this.#chosen = this.#chosen.filter((each) => each !== name);
    this.#draw();
    say(`${name} taken away`);
    this.#input.focus();
  }

  #draw() {
    this.#chips.replaceChildren(...this.#chosen.map((name) => {
      const button = make("button", { type: "button", "aria-label": `Take ${name} away` }, "×");
      button.addEventListener("click", () => this.#remove(name));
      return make("li", {}, name, button);
    }));
    this.changed(this.chosen);
  }
}
