// A finished job's soft maps, as the page works with them.

import { readNpz } from "./npz.js";

/** Read scores.npz: what `decide` needs, and the `cams`, or the scores where a segmenter has none. */
export async function readMaps(blob) {
  const npz = await readNpz(await blob.arrayBuffer());
  const [height, width] = npz.image_size.data;
  const background = npz.background && { ...npz.background, shape: [1, ...npz.background.shape] };
  return {
    scores: npz.scores,
    background: background ?? null,
    indices: npz.class_index.data,
    names: npz.class_name.data,
    height,
    width,
    cams: npz.cams ?? npz.scores,
    hasCams: Boolean(npz.cams),
  };
}
