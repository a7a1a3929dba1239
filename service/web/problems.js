// Errors in plain words, with what can be done about them as buttons.

import { byId, make } from "./dom.js";

const FAILURES = {
  image_unreadable: "The photo could not be read",
  unknown_label: "The model does not know one of the labels",
  cannot_segment: "This model needs labels",
  input_missing: "The photo is no longer stored",
  storage_full: "The service has no room left",
  storage_unavailable: "The service cannot store results",
  out_of_memory: "The photo is too large for the service's memory",
  timeout: "It took too long",
  worker_died: "The service stopped while working on the photo",
  model_error: "The model could not work on the photo",
};

export const unreadable = {
  title: "This photo cannot be read",
  detail: "Choose a JPEG, PNG or WebP file that opens elsewhere.",
};

export const expired = (canSend) => ({
  title: "This job has expired",
  detail: `Results are kept for a day. ${canSend ? "The photo can be sent again" : "Choose the photo again"}`,
});

export const failed = ({ code, detail }) => ({ title: FAILURES[code] ?? "The job failed", detail });

/** Show what went wrong; `actions` are [words, function]. */
export function showProblem({ title, detail }, actions = []) {
  const box = byId("problem");
  const buttons = actions.map(([words, act]) => {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => {
      hideProblem();
      act();
    });
    return button;
  });
  box.hidden = false;
  box.replaceChildren(
    make("h2", {}, title),
    make("p", {}, sentence(detail)),
    ...(buttons.length ? [make("div", { className: "row wrap" }, ...buttons)] : []),
  );
  box.focus({ preventScroll: true });
  box.scrollIntoView({ block: "nearest" });
}

export function hideProblem() {
  byId("problem").hidden = true;
  byId("problem").replaceChildren();
}

const sentence = (words = "") => (words ? words[0].toUpperCase() + words.slice(1) + (/[.?!]$/.test(words) ? "" : ".") : "");
