// Asks the worker for decisions: one at a time, and of those that wait only the latest.

export class Decider {
  #worker = new Worker(new URL("decide-worker.js", import.meta.url), { type: "module" });
  #waiting = null;
  #busy = false;
  #number = 0;

  /** `decided` is called with each decision and the options that it is of. */
  constructor(decided) {
    this.decided = decided;
    this.#worker.addEventListener("message", ({ data }) => {
      this.#busy = false;
      if (data.number === this.#number) this.decided(data, this.options);
      this.#send();
    });
  }

  /** Decide about other maps from now on. */
  load(maps) {
    this.#number += 1;
    this.#waiting = null;
    this.#worker.postMessage({ maps });
  }

  decide(options) {
    this.#waiting = options;
    if (!this.#busy) this.#send();
  }

  #send() {
    if (!this.#waiting) return;
    [this.options, this.#waiting, this.#busy] = [this.#waiting, null, true];
    this.#worker.postMessage({ options: this.options, number: this.#number });
  }
}
