// How far a job is, in words and as a bar.

import { byId, say } from "./dom.js";

const STAGES = {
  decode: "Reading the photo",
  cam: "Looking for the classes",
  segment: "Looking at the photo",
  refine: "Drawing the edges",
  encode: "Writing the mask",
};

const OTHERS = {
  sending: "Sending the photo",
  away: "The connection is gone; trying again",
  running: "Working",
};

/** Show a job's document, or {status: "sending"} before there is one and {status: "away"} while nobody answers. */
export function showProgress(job) {
  const words = describe(job);
  byId("stage-name").textContent = words;
  say(words);
  const bar = byId("progress");
  if (job.progress) bar.value = job.progress.fraction;
  else bar.removeAttribute("value");
}

function describe({ status, position, progress }) {
  if (status === "queued" && position) return `Waiting for ${position} other ${position === 1 ? "photo" : "photos"}`;
  if (status === "queued") return "Waiting for its turn";
  return progress ? STAGES[progress.stage] ?? `Working: ${progress.stage}` : OTHERS[status] ?? OTHERS.running;
}
