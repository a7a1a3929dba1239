// Calls to the service. Everything is fetched here, so that every request carries the API key.

const KEY = "semples-key";
const FIRST_POLL_MS = 100;
const POLL_MS = 400;
const RETRY_MS = 2000;

export const storeKey = (key) => sessionStorage.setItem(KEY, key);

/** An error answer, in the service's words or, where it sent none, in ours. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, type = "", nearest = [], label = "" }) {
    super(detail);
    Object.assign(this, { title, detail, status, kind: type.split("/").pop(), nearest, label });
  }
}

const UNREACHABLE = {
  title: "The service does not answer",
  detail: "Check your connection, or try again in a moment.",
  type: "unreachable",
};

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (response.ok) return response;
  throw await readProblem(response);
}

async function readProblem(response) {
  const { status } = response;
  const isProblem = response.headers.get("content-type")?.startsWith("application/problem+json");
  const document = isProblem ? await response.json().catch(() => ({})) : {};
  // A proxy's answer while the service restarts.
  if (!document.title && status >= 502) return new Problem({ ...UNREACHABLE, status });
  const fallback = { title: "That did not work", detail: `The service answered with code ${status}.` };
  return new Problem({ ...fallback, ...document, status });
}

const json = async (path, options) => (await call(path, options)).json();

export const models = () => json("models");
export const job = (id, options) => json(`jobs/${id}`, options);
export const cancel = (id) => json(`jobs/${id}`, { method: "DELETE" });
export const file = async (path, options) => (await call(path, options)).blob();

/** Post a photo: to /pseudo-mask with labels, to /segment without. */
export function post(photo, { labels, model, refine, vocabulary }, options) {
  const body = new FormData();
  body.append("image", photo, photo.name || "photo");
  for (const label of labels) body.append("labels", label);
  if (model) body.append("model", model);
  if (refine) body.append("refine", refine);
  if (labels.length && vocabulary) body.append("vocabulary", vocabulary);
  return json(labels.length ? "pseudo-mask" : "segment", { method: "POST", body, ...options });
}

/** Poll a job until it ends; `onUpdate` gets each answer, and {status: "unreachable"} while there is none. */
export async function follow(document, onUpdate, { signal }) {
  for (let wait = FIRST_POLL_MS; ["queued", "running"].includes(document.status); wait = Math.min(2 * wait, POLL_MS)) {
    await pause(wait, signal);
    document = await pollJob(document.id, onUpdate, signal);
    onUpdate(document);
  }
  return document;
}

async function pollJob(id, onUpdate, signal) {
  for (;;) {
    try {
      return await job(id, { signal });
    } catch (error) {
      const retryable = error instanceof Problem && (error.kind === "unreachable" || error.status === 503);
      if (!retryable) throw error;
      onUpdate({ status: "unreachable" });
      await pause(RETRY_MS, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
