// Asks the worker for decisions: one at a time, and of those that wait only the latest.

export class Decider {
  #worker = new Worker(new URL("decide-worker.js", import.meta.url), { type: "module" });
  #shapes = [];
  #waiting = [];
  #busy = false;
  #number = 0;

  /** `decided` is called with each decision. */
  constructor(decided) {
    this.#worker.addEventListener("message", ({ data }) => {
      this.#busy = false;
      if (data.number === this.#number) decided(data);
      this.#send();
    });
  }

  /** Decide about other maps from now on, first roughly at the shape in which they are shown if that is smaller. */
  load(maps, shown) {
    const whole = { width: maps.width, height: maps.height };
    this.#shapes = shown.width < whole.width ? [shown, whole] : [whole];
    this.#number += 1;
    this.#waiting = [];
    this.#worker.postMessage({ maps });
  }

  decide(options) {
    this.#waiting = this.#shapes.map((shape) => ({ options, shape, number: this.#number }));
    if (!this.#busy) this.#send();
  }

  #send() {
    const next = this.#waiting.shift();
    this.#busy = Boolean(next);
    if (next) this.#worker.postMessage(next);
  }
}
