// The page: choose a photo and labels, post them, follow the job, show its result.

import * as api from "./api.js";
import { announce, byId } from "./dom.js";
import { openPhoto, photoPixels, shownShape, thumbnail } from "./draw.js";
import * as history from "./history.js";
import { Labels, Models } from "./labels.js";
import { expiredJob, failedJob, hideProblem, showProblem, showProgress, unreadablePhoto } from "./messages.js";
import { Result } from "./result.js";

let photo = null; // {file, bitmap}
let running = null; // {controller, id}: the job that is being made
const labels = new Labels(() => updateForm());
const models = new Models(() => {
  labels.classes = models.classes;
  updateForm();
  updateExamples();
});
const result = new Result((error) => showError(error));

/** Show what belongs to a state: empty, ready, running or result. */
function setState(state) {
  document.body.dataset.state = state;
  byId("drop").hidden = state !== "empty";
  byId("viewer").hidden = state === "empty";
  byId("running").hidden = state !== "running";
  byId("another").hidden = ["empty", "running"].includes(state);
  for (const id of ["views", "result", "opacity-row"]) byId(id).hidden = state !== "result";
  byId("go").disabled = state === "running";
  updateForm();
}

function updateForm() {
  const withoutLabels = !labels.chosen.length && models.canSegment;
  byId("go").textContent = withoutLabels ? "Find whatever it shows" : "Make the mask";
  byId("label-help").textContent = models.canSegment ? "Choose one or more, or none to let the model look by itself." : "Choose one or more.";
}

// Photos

async function usePhoto(file) {
  if (running) return;
  hideProblem();
  try {
    photo = await openPhoto(file);
  } catch {
    showProblem(unreadablePhoto);
    return;
  }
  showPhoto();
  setState("ready");
  announce("Photo ready");
  labels.focus();
}

function showPhoto() {
  const shape = shownShape(photo?.bitmap ?? { width: 640, height: 480 });
  const canvas = Object.assign(byId("canvas"), shape);
  canvas.getContext("2d").putImageData(photoPixels(photo, shape), 0, 0);
  canvas.setAttribute("aria-label", "Your photo");
}

function removePhoto() {
  photo = null;
  hideProblem();
  setState("empty");
  byId("file").focus();
}

/** Take photos that are chosen, taken with the camera, dropped or pasted. */
function listenForPhotos() {
  for (const input of [byId("file"), byId("camera")]) {
    input.addEventListener("change", () => {
      if (input.files[0]) usePhoto(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  const drop = byId("drop");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) usePhoto(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) usePhoto(file);
  });
}

// Example photos

const exampleButtons = [...byId("examples").querySelectorAll("button")];

/** Show the examples whose label the chosen model knows. */
function updateExamples() {
  for (const button of exampleButtons) button.parentElement.hidden = !labels.find(button.dataset.label);
  byId("examples").hidden = exampleButtons.every((button) => button.parentElement.hidden);
}

/** Post an example photo with its label. */
function tryExample({ dataset: { file, label } }) {
  if (running) return;
  run(async (signal) => {
    const blob = await api.file(`web/examples/${file}`, { signal });
    photo = await openPhoto(new File([blob], file, { type: blob.type }));
    showPhoto();
    labels.set([labels.find(label)?.name ?? label]);
    await post({ labels: labels.chosen, ...models.chosen }, signal);
  });
}

// Jobs

/** Run `task` as the only one, and show its error. */
async function run(task) {
  hideProblem();
  const controller = new AbortController();
  running = { controller, id: null };
  if (photo) showPhoto();
  showProgress({ status: "sending" });
  setState("running");
  try {
    await task(controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") showError(error, () => run(task));
  } finally {
    running = null;
    if (document.body.dataset.state === "running") setState(photo ? "ready" : "empty");
  }
}

function submit() {
  labels.commitText();
  if (!photo) {
    showProblem({ title: "There is no photo yet", detail: "Choose a photo first, then its labels" });
  } else if (!labels.chosen.length && !models.canSegment) {
    showProblem({ title: "No label is chosen", detail: "Say at least one thing that the photo shows" }, [["Choose a label", () => labels.focus()]]);
  } else {
    const request = { labels: labels.chosen, ...models.chosen };
    run((signal) => post(request, signal));
  }
}

async function post(request, signal) {
  const job = await api.post(photo.file, request, { signal });
  const entry = { id: job.id, labels: request.labels, time: Date.now(), thumb: thumbnail(photo) };
  history.add(entry, photo.file);
  history.draw(openEntry);
  await showJob(job, signal);
}

/** Follow a job to its end, and show its result or failure. */
async function showJob(job, signal) {
  running.id = job.id;
  showProgress(job);
  const document = await api.follow(job, showProgress, { signal });
  if (document.status === "canceled") {
    announce("Canceled");
  } else if (document.status === "failed") {
    showProblem(failedJob(document.failure), document.failure.repeatable && photo ? [["Try again", submit]] : []);
  } else {
    await result.load(document, photo, { signal });
    setState("result");
    byId("result-title").focus({ preventScroll: true });
    byId("viewer").scrollIntoView({ block: "nearest" });
  }
}

async function cancel() {
  const { controller, id } = running;
  controller.abort(new DOMException("canceled", "AbortError"));
  announce("Canceled");
  if (id) await api.cancel(id).catch(showError);
}

/** Show a job of the history. */
function openEntry(entry) {
  if (running) return;
  run(async (signal) => {
    const file = await history.photoOf(entry.id);
    photo = file ? await openPhoto(file).catch(() => null) : null;
    showPhoto();
    labels.set(entry.labels);
    await showJob(await api.job(entry.id, { signal }), signal);
  });
}

// Errors, models and the API key

/** Show an error; `retry` is offered as "Try again", or runs once a missing key is given. */
function showError(error, retry) {
  if (!(error instanceof api.Problem)) {
    console.warn(error);
    showProblem({ title: "The page cannot show this", detail: error.message });
  } else if (error.status === 401) {
    askForKey(retry);
  } else if (error.kind === "unknown-label") {
    showUnknownLabel(error);
  } else if (error.kind === "unknown-job") {
    showProblem(expiredJob(Boolean(photo)), photo ? [["Send it again", submit]] : []);
  } else {
    showProblem(error, retry ? [["Try again", retry]] : []);
  }
}

function showUnknownLabel({ label, nearest }) {
  const replaceBy = (names) => labels.set(labels.chosen.flatMap((each) => (each === label ? names : [each])));
  const detail = nearest.length ? "Did you mean one of these?" : "Choose another one from the list";
  const actions = nearest.map((name) => [name, () => { replaceBy([name]); submit(); }]);
  if (models.isOpen) actions.push([`Try “${label}” all the same`, () => { byId("open").checked = true; submit(); }]);
  showProblem({ title: `The model does not know “${label}”`, detail }, [...actions, ["Leave it out", () => replaceBy([])]]);
}

let afterKey = null;

function askForKey(retry) {
  afterKey = retry ?? loadModels;
  byId("key-form").hidden = false;
  if (byId("key").value) showProblem({ title: "This key is not valid", detail: "Check it, or ask whoever runs the service" });
  byId("key").focus();
}

async function useKey() {
  api.storeKey(byId("key").value.trim());
  byId("key-form").hidden = true;
  hideProblem();
  const retry = afterKey;
  if (await loadModels() && retry !== loadModels) retry();
}

async function loadModels() {
  try {
    models.set(await api.models());
    byId("key").value = "";
    return true;
  } catch (error) {
    showError(error, loadModels);
    return false;
  }
}

function onSubmit(id, act) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit("form", submit);
onSubmit("key-form", useKey);
byId("cancel").addEventListener("click", cancel);
byId("another").addEventListener("click", removePhoto);
for (const button of exampleButtons) button.addEventListener("click", () => tryExample(button));
listenForPhotos();
history.draw(openEntry);
setState("empty");
loadModels();
