// Pixels: of photos, of results drawn over them, and the palettes. Pictures are RGBA of shape (height, width).

import { make } from "./dom.js";

const MAX_SHOWN = 1600; // longer side in pixels of what is drawn on the screen
const THUMBNAIL = 120;

/** Decode a file, upright: {file, bitmap}. Throws if the browser cannot. */
export async function openPhoto(file) {
  return { file, bitmap: await createImageBitmap(file) };
}

/** Return the shape in which an image is shown. */
export function shownShape({ width, height }) {
  const scale = Math.min(1, MAX_SHOWN / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** Return a photo's pixels in a shape; gray if there is no photo. */
export function photoPixels(photo, { width, height }) {
  const context = makeCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "rgb(128 128 128)";
  context.fillRect(0, 0, width, height);
  if (photo) context.drawImage(photo.bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** Return the middle square of a photo, small, as a data URL. */
export function thumbnail({ bitmap }) {
  const canvas = makeCanvas(THUMBNAIL, THUMBNAIL);
  const side = Math.min(bitmap.width, bitmap.height);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  canvas.getContext("2d").drawImage(bitmap, x, y, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  return canvas.toDataURL("image/jpeg", 0.7);
}

/** Encode a picture as PNG. */
export function toPng(picture) {
  const canvas = makeCanvas(picture.width, picture.height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

const makeCanvas = (width, height) => make("canvas", { width, height });

/** PASCAL VOC's palette, 768 bytes: bits of the index, lowest first, fill red, green and blue from the highest bit. */
export const voc = new Uint8Array(768);
for (let index = 0; index < 256; index++) {
  for (let bit = 0; bit < 8; bit++) {
    for (let channel = 0; channel < 3; channel++) {
      voc[3 * index + channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit);
    }
  }
}

/** VOC's hues at full brightness, to lay over photos; 255 (ignored) is almost white. */
export const vivid = new Uint8Array(768);
for (let index = 0; index < 256; index++) {
  const color = voc.subarray(3 * index, 3 * index + 3);
  const brightest = Math.max(...color, 1);
  for (let channel = 0; channel < 3; channel++) {
    vivid[3 * index + channel] = index === 255 ? 224 : Math.floor((color[channel] * 255) / brightest);
  }
}

/** Lay a label map's colors over a photo, with a white line around each region. */
export function drawOverlay(photo, labelMap, { opacity, shown }) {
  const { width, height } = photo;
  const picture = new ImageData(new Uint8ClampedArray(photo.data), width, height);
  const { data } = picture;
  for (let i = 0; i < labelMap.length; i++) {
    const label = shown(labelMap[i]) ? labelMap[i] : 0;
    const edge = (i % width && isEdge(labelMap, i, i - 1, shown)) || (i >= width && isEdge(labelMap, i, i - width, shown));
    for (let c = 0; c < 3; c++) {
      const at = 4 * i + c;
      if (edge && opacity > 0) data[at] = 255;
      else if (label) data[at] += (vivid[3 * label + c] - data[at]) * opacity;
    }
  }
  return picture;
}

const isEdge = (map, i, j, shown) => map[i] !== map[j] && (shown(map[i]) || shown(map[j]));

/** Draw the label map itself in VOC's colors, as in the mask file. */
export function drawMask(labelMap, { width, height }, { shown }) {
  const picture = new ImageData(width, height);
  for (let i = 0; i < labelMap.length; i++) {
    const label = shown(labelMap[i]) ? labelMap[i] : 0;
    picture.data.set(voc.subarray(3 * label, 3 * label + 3), 4 * i);
    picture.data[4 * i + 3] = 255;
  }
  return picture;
}

/** Lay each pixel's highest score over the photo in gray, as strongly as the score; `scores` as from upsampleBilinear. */
export function drawScores(photo, scores, indices, { opacity, shown }) {
  const { width, height } = photo;
  const picture = new ImageData(width, height);
  const strength = Math.min(1, 1.6 * opacity);
  const classes = indices.map((index, k) => [index, k]).filter(([index]) => shown(index));
  for (let y = 0; y < height; y++) {
    const rows = classes.map(([index, k]) => [index, scores.row(y, k)]);
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      const gray = (photo.data[at] + photo.data[at + 1] + photo.data[at + 2]) / 3;
      let [index, best] = [0, 0];
      for (const [candidate, row] of rows) if (row[x] > best) [index, best] = [candidate, row[x]];
      const weight = strength * Math.min(best, 1);
      for (let c = 0; c < 3; c++) picture.data[at + c] = gray + (vivid[3 * index + c] - gray) * weight;
      picture.data[at + 3] = 255;
    }
  }
  return picture;
}

/** Resize a label map by nearest neighbor. */
export function resizeNearest(labelMap, from, to) {
  if (from.width === to.width && from.height === to.height) return labelMap;
  const resized = new Uint8Array(to.width * to.height);
  for (let y = 0; y < to.height; y++) {
    const row = Math.floor(((y + 0.5) * from.height) / to.height) * from.width;
    for (let x = 0; x < to.width; x++) {
      resized[y * to.width + x] = labelMap[row + Math.floor(((x + 0.5) * from.width) / to.width)];
    }
  }
  return resized;
}
