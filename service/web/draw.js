// Pictures of a result: pixels in, pixels out. All are of the photo's shape, (height, width), RGBA.

import { vivid, voc } from "./palette.js";

/** Lay a label map's colors over a photo, with a white line around each region. */
export function overlay(photo, labelMap, { opacity, shown }) {
  const { width, height } = photo;
  const picture = new ImageData(new Uint8ClampedArray(photo.data), width, height);
  const { data } = picture;
  for (let i = 0; i < labelMap.length; i++) {
    const label = shown(labelMap[i]) ? labelMap[i] : 0;
    const edge = (i % width && differ(labelMap, i, i - 1, shown)) || (i >= width && differ(labelMap, i, i - width, shown));
    for (let c = 0; c < 3; c++) {
      const at = 4 * i + c;
      if (edge && opacity > 0) data[at] = 255;
      else if (label) data[at] += (vivid[3 * label + c] - data[at]) * opacity;
    }
  }
  return picture;
}

const differ = (map, i, j, shown) => map[i] !== map[j] && (shown(map[i]) || shown(map[j]));

/** The label map itself in the colors of its file. */
export function mask(labelMap, width, height, { shown }) {
  const picture = new ImageData(width, height);
  for (let i = 0; i < labelMap.length; i++) {
    const label = shown(labelMap[i]) ? labelMap[i] : 0;
    picture.data.set(voc.subarray(3 * label, 3 * label + 3), 4 * i);
    picture.data[4 * i + 3] = 255;
  }
  return picture;
}

/** Lay each pixel's best soft map over the photo in gray, as strongly as the map says; `maps` as from stretch. */
export function soft(photo, maps, indices, { opacity, shown }) {
  const { width, height } = photo;
  const picture = new ImageData(width, height);
  const strength = Math.min(1, 1.6 * opacity);
  const chosen = indices.map((index, k) => [index, k]).filter(([index]) => shown(index));
  for (let y = 0; y < height; y++) {
    const lines = chosen.map(([index, k]) => [index, maps.row(y, k)]);
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      const gray = (photo.data[at] + photo.data[at + 1] + photo.data[at + 2]) / 3;
      let [index, best] = [0, 0];
      for (const [candidate, line] of lines) if (line[x] > best) [index, best] = [candidate, line[x]];
      const weight = strength * Math.min(best, 1);
      for (let c = 0; c < 3; c++) picture.data[at + c] = gray + (vivid[3 * index + c] - gray) * weight;
      picture.data[at + 3] = 255;
    }
  }
  return picture;
}

/** Bring a label map from one shape to another: the nearest pixel counts. */
export function fit(labelMap, from, to) {
  if (from.width === to.width && from.height === to.height) return labelMap;
  const fitted = new Uint8Array(to.width * to.height);
  for (let y = 0; y < to.height; y++) {
    const row = Math.floor(((y + 0.5) * from.height) / to.height) * from.width;
    for (let x = 0; x < to.width; x++) {
      fitted[y * to.width + x] = labelMap[row + Math.floor(((x + 0.5) * from.width) / to.width)];
    }
  }
  return fitted;
}
