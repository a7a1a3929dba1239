// The page: a photo and labels go in, a job is followed, a result comes out.

import * as api from "./api.js";
import { byId, say } from "./dom.js";
import * as history from "./history.js";
import { Labels } from "./labels.js";
import { Models } from "./models.js";
import { openPhoto, pixels, shownShape, thumbnail, watchFiles } from "./photo.js";
import { expired, failed, hideProblem, showProblem, unreadable } from "./problems.js";
import { showProgress } from "./progress.js";
import { Result } from "./result.js";

let photo = null;
let running = null; // {controller, id} of the job in hand
const labels = new Labels(() => tellGo());
const models = new Models(() => tellGo());
const result = new Result((error) => complain(error));

/** empty, ready, running, result: what is on the screen follows from it. */
function enter(state) {
  document.body.dataset.state = state;
  byId("drop").hidden = state !== "empty";
  byId("viewer").hidden = state === "empty";
  byId("running").hidden = state !== "running";
  byId("another").hidden = ["empty", "running"].includes(state);
  for (const id of ["views", "result"]) byId(id).hidden = state !== "result";
  byId("opacity-row").hidden = state !== "result";
  byId("go").disabled = state === "running";
  tellGo();
}

function tellGo() {
  const free = !labels.chosen.length && models.canSegment;
  byId("go").textContent = free ? "Find whatever it shows" : "Make the mask";
  byId("label-help").textContent = models.canSegment ? "Choose one or more, or none to let the model look by itself." : "Choose one or more.";
}

async function takePhoto(file) {
  if (running) return;
  hideProblem();
  try {
    photo = await openPhoto(file);
  } catch {
    showProblem(unreadable);
    return;
  }
  showPhoto();
  enter("ready");
  say("Photo ready");
  labels.focus();
}

function showPhoto() {
  const shape = shownShape(photo?.bitmap ?? { width: 640, height: 480 });
  const canvas = Object.assign(byId("canvas"), shape);
  canvas.getContext("2d").putImageData(pixels(photo, shape), 0, 0);
  canvas.setAttribute("aria-label", "Your photo");
}

/** Run `work` as the one thing that is being done, and say what goes wrong. */
async function busy(work) {
  hideProblem();
  const controller = new AbortController();
  running = { controller, id: null };
  if (photo) showPhoto();
  showProgress({ status: "sending" });
  enter("running");
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") complain(error, () => busy(work));
  } finally {
    running = null;
    if (document.body.dataset.state === "running") enter(photo ? "ready" : "empty");
  }
}

function send() {
  labels.settle();
  if (!photo) {
    showProblem({ title: "There is no photo yet", detail: "Choose a photo first, then its labels" });
    return;
  }
  if (!labels.chosen.length && !models.canSegment) {
    showProblem({ title: "No label is chosen", detail: "Say at least one thing that the photo shows" }, [["Choose a label", () => labels.focus()]]);
    return;
  }
  const asked = { labels: labels.chosen, ...models.chosen };
  busy(async (signal) => {
    const job = await api.post(photo.file, asked, { signal });
    const entry = { id: job.id, labels: asked.labels, time: Date.now(), thumb: thumbnail(photo) };
    history.remember(entry, photo.file);
    history.draw(openEntry);
    await finish(job, signal);
  });
}

async function finish(job, signal) {
  running.id = job.id;
  showProgress(job);
  const done = await api.follow(job, showProgress, { signal });
  if (done.status === "canceled") {
    say("Canceled");
  } else if (done.status === "failed") {
    showProblem(failed(done.failure), done.failure.repeatable && photo ? [["Try again", send]] : []);
  } else {
    await result.load(done, photo, { signal });
    enter("result");
    byId("result-title").focus({ preventScroll: true });
    byId("viewer").scrollIntoView({ block: "nearest" });
  }
}

async function cancel() {
  const { controller, id } = running;
  controller.abort(new DOMException("canceled", "AbortError"));
  say("Canceled");
  if (id) await api.cancel(id).catch(complain);
}

function openEntry(entry) {
  if (running) return;
  busy(async (signal) => {
    const file = await history.photoOf(entry.id);
    photo = file ? await openPhoto(file).catch(() => null) : null;
    showPhoto();
    labels.set(entry.labels);
    await finish(await api.job(entry.id, { signal }), signal);
  });
}

function complain(error, again) {
  if (!(error instanceof api.Problem)) {
    console.warn(error);
    showProblem({ title: "The page cannot show this", detail: error.message });
  } else if (error.status === 401) {
    askForKey(again);
  } else if (error.kind === "unknown-label") {
    suggest(error);
  } else if (error.kind === "unknown-job") {
    showProblem(expired(Boolean(photo)), photo ? [["Send it again", send]] : []);
  } else {
    showProblem(error, again ? [["Try again", again]] : []);
  }
}

function suggest({ label, nearest }) {
  const replace = (name) => () => labels.set(labels.chosen.flatMap((each) => (each !== label ? [each] : name ? [name] : [])));
  const detail = nearest.length ? "Did you mean one of these?" : "Choose another one from the list";
  const actions = nearest.map((name) => [name, () => { replace(name)(); send(); }]);
  if (models.isOpen) actions.push([`Try “${label}” all the same`, () => { byId("open").checked = true; send(); }]);
  showProblem({ title: `The model does not know “${label}”`, detail }, [...actions, ["Leave it out", replace(null)]]);
}

let afterKey = null;
function askForKey(again) {
  afterKey = again ?? loadModels;
  byId("key-form").hidden = false;
  if (byId("key").value) showProblem({ title: "This key is not valid", detail: "Check it, or ask whoever runs the service" });
  byId("key").focus();
}

function useKey() {
  api.keepKey(byId("key").value.trim());
  byId("key-form").hidden = true;
  hideProblem();
  const again = afterKey;
  loadModels().then((known) => { if (known && again !== loadModels) again(); });
}

async function loadModels() {
  try {
    models.set(await api.models());
    labels.classes = models.classes;
    byId("key").value = "";
    return true;
  } catch (error) {
    complain(error, loadModels);
    return false;
  }
}

function onSubmit(id, act) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit("form", send);
onSubmit("key-form", useKey);
byId("cancel").addEventListener("click", cancel);
byId("model").addEventListener("change", () => { labels.classes = models.classes; });
byId("another").addEventListener("click", () => {
  photo = null;
  hideProblem();
  enter("empty");
  byId("file").focus();
});
watchFiles(takePhoto);
history.draw(openEntry);
enter("empty");
loadModels();
