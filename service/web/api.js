// The service's calls. Everything is fetched here, so that the key goes along with all of it.

const KEY = "semples-key";
const POLL_MS = 400;
const AWAY_MS = 2000;

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** What went wrong, in the service's words or, where it said nothing, in ours. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, type = "", nearest = [], label = "" }) {
    super(detail);
    Object.assign(this, { title, detail, status, kind: type.split("/").pop(), nearest, label });
  }
}

const AWAY = {
  title: "The service does not answer",
  detail: "Check your connection, or try again in a moment.",
  type: "away",
};

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(AWAY);
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  const { status } = response;
  const isProblem = response.headers.get("content-type")?.startsWith("application/problem+json");
  const told = isProblem ? await response.json().catch(() => ({})) : {};
  // A proxy's answer while the service restarts.
  if (!told.title && status >= 502) return new Problem({ ...AWAY, status });
  const plain = { title: "That did not work", detail: `The service answered with code ${status}.` };
  return new Problem({ ...plain, ...told, status });
}

const json = async (path, options) => (await call(path, options)).json();

export const models = () => json("models");
export const job = (id, options) => json(`jobs/${id}`, options);
export const cancel = (id) => json(`jobs/${id}`, { method: "DELETE" });
export const file = async (path, options) => (await call(path, options)).blob();

/** Post a photo: with labels for a mask of these, without for whatever it shows. */
export function post(photo, { labels, model, refine, vocabulary }, options) {
  const body = new FormData();
  body.append("image", photo, photo.name || "photo");
  for (const label of labels) body.append("labels", label);
  if (model) body.append("model", model);
  if (refine) body.append("refine", refine);
  if (labels.length && vocabulary) body.append("vocabulary", vocabulary);
  return json(labels.length ? "pseudo-mask" : "segment", { method: "POST", body, ...options });
}

/** Ask for a job until it is done; `tell` hears each answer, and {status: "away"} while there is none. */
export async function follow(document, tell, { signal }) {
  while (["queued", "running"].includes(document.status)) {
    await pause(POLL_MS, signal);
    document = await ask(document, tell, signal);
    tell(document);
  }
  return document;
}

async function ask(document, tell, signal) {
  for (;;) {
    try {
      return await job(document.id, { signal });
    } catch (error) {
      if (!(error instanceof Problem) || (error.kind !== "away" && error.status !== 503)) throw error;
      tell({ status: "away" });
      await pause(AWAY_MS, signal);
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
