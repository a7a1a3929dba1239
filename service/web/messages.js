// What the page tells its user: the progress of a job, and problems with buttons for what can be done.

import { announce, byId, make } from "./dom.js";

const STAGES = {
  decode: "Reading the photo",
  cam: "Looking for the classes",
  segment: "Looking at the photo",
  refine: "Drawing the edges",
  encode: "Writing the mask",
};

const STATUSES = {
  sending: "Sending the photo",
  unreachable: "The connection is gone; trying again",
  running: "Working",
};

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

/** Show a job's document, {status: "sending"} before there is one, or {status: "unreachable"}. */
export function showProgress(job) {
  const message = describe(job);
  byId("stage-name").textContent = message;
  announce(message);
  const bar = byId("progress");
  if (job.progress) bar.value = job.progress.fraction;
  else bar.removeAttribute("value");
}

function describe({ status, position, progress }) {
  if (status === "queued" && position) return `Waiting for ${position} other ${position === 1 ? "photo" : "photos"}`;
  if (status === "queued") return "Waiting for its turn";
  return progress ? STAGES[progress.stage] ?? `Working: ${progress.stage}` : STATUSES[status] ?? STATUSES.running;
}

export const unreadablePhoto = {
  title: "This photo cannot be read",
  detail: "Choose a JPEG, PNG or WebP file that opens elsewhere.",
};

export const expiredJob = (hasPhoto) => ({
  title: "This job has expired",
  detail: `Results are kept for a day. ${hasPhoto ? "The photo can be sent again" : "Choose the photo again"}`,
});

export const failedJob = ({ code, detail }) => ({ title: FAILURES[code] ?? "The job failed", detail });

/** Show a problem; `actions` are pairs of button text and function. */
export function showProblem({ title, detail }, actions = []) {
  const box = byId("problem");
  const buttons = actions.map(([text, act]) => {
    const button = make("button", { type: "button" }, text);
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

const sentence = (text = "") => (text ? text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".") : "");
