// Photos: from a file to pixels, and by what ways a file comes in.

import { byId, make } from "./dom.js";

const MOST = 1600; // pixels of the longer side that are drawn on the screen
const THUMB = 120;

/** Decode a file upright: {file, bitmap}. Throws where the browser cannot. */
export async function openPhoto(file) {
  return { file, bitmap: await createImageBitmap(file) };
}

/** Return the shape in which an image is shown. */
export function shownShape({ width, height }) {
  const scale = Math.min(1, MOST / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** Return a photo's pixels at a shape; gray where there is no photo. */
export function pixels(photo, { width, height }) {
  const context = canvasOf(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "rgb(128 128 128)";
  context.fillRect(0, 0, width, height);
  if (photo) context.drawImage(photo.bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** Return a small picture of a photo as a data URL. */
export function thumbnail({ bitmap }) {
  const canvas = canvasOf(THUMB, THUMB);
  const side = Math.min(bitmap.width, bitmap.height);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  canvas.getContext("2d").drawImage(bitmap, x, y, side, side, 0, 0, THUMB, THUMB);
  return canvas.toDataURL("image/jpeg", 0.7);
}

export const canvasOf = (width, height) => make("canvas", { width, height });

export const toPng = (canvas) => new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });

/** Call `take` with each file that is chosen, taken with the camera, dropped or pasted. */
export function watchFiles(take) {
  for (const input of [byId("file"), byId("camera")]) {
    input.addEventListener("change", () => {
      if (input.files[0]) take(input.files[0]);
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
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) take(file);
  });
}
