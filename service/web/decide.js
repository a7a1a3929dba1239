// From a job's scores.npz to a label map. `decide` is the rule of models/inference/masks.py, in 32-bit floats throughout.
// The page runs it in a worker, which loads this same file: see the end.

const { fround } = Math;
const IGNORE = 255;
const [USUAL_MEAN, LOWEST, HIGHEST] = [0.25, 0.1, 0.9]; // of thresholds with a slope

/** Read scores.npz: what `decide` needs, and the `cams`, or the scores where a segmenter has none. */
export async function readScores(blob) {
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

/** Decide masks in a worker: one decision at a time, and of those that wait only the latest. */
export class DecideWorker {
  #worker = new Worker(import.meta.url, { type: "module" });
  #shapes = [];
  #waiting = [];
  #busy = false;
  #number = 0;

  /** `onDecision` is called with each decision, as from `decide`, with its `width` and `height`. */
  constructor(onDecision) {
    this.#worker.addEventListener("message", ({ data }) => {
      this.#busy = false;
      if (data.number === this.#number) onDecision(data);
      this.#send();
    });
  }

  /** Set the scores; if `shown` is smaller than the image, each decision is made at that shape first. */
  load(scores, shown) {
    const full = { width: scores.width, height: scores.height };
    this.#shapes = shown.width < full.width ? [shown, full] : [full];
    this.#number += 1;
    this.#waiting = [];
    this.#worker.postMessage({ scores });
  }

  decide(options) {
    this.#waiting = this.#shapes.map((shape) => ({ options, shape, number: this.#number }));
    if (!this.#busy) this.#send();
  }

  #send() {
    const next = this.#waiting.shift();
    this.#busy = Boolean(next);
    if (next) this.#worker.postMessage(next);
  }
}

/**
 * Decide a label map.
 *
 * `maps` as from readScores; `options` as in a job's document.
 * Returns {labelMap, classes: [{index, area, confidence}], ignored}.
 */
function decide(maps, options) {
  const { height, width, indices } = maps;
  const labelMap = new Uint8Array(height * width);
  const counts = new Float64Array(256);
  const sums = new Float64Array(256);
  const backgroundScore = backgroundRule(maps, options);
  const scores = indices.length ? upsampleBilinear(maps.scores, height, width) : null;
  const backgrounds = maps.background ? upsampleBilinear(maps.background, height, width) : null;
  const minConfidence = fround(options.min_confidence);
  for (let y = 0; (scores || backgrounds) && y < height; y++) {
    const rows = indices.map((_, k) => scores.row(y, k));
    const backgroundRow = backgrounds?.row(y, 0);
    for (let x = 0; x < width; x++) {
      let winner = 0;
      let best = rows.length ? rows[0][x] : 0;
      let sum = best;
      for (let k = 1; k < rows.length; k++) {
        const score = rows[k][x];
        sum = fround(sum + score);
        if (score > best) [winner, best] = [k, score];
      }
      const background = backgroundScore(winner, best, sum, backgroundRow?.[x]);
      let total = fround(sum + background);
      if (backgroundRow) total = Math.max(total, 1);
      const confidence = fround(Math.max(best, background) / Math.max(total, fround(1e-12)));
      const label = confidence < minConfidence ? IGNORE : best > background ? indices[winner] : 0;
      labelMap[y * width + x] = label;
      counts[label] += 1;
      sums[label] += confidence;
    }
  }
  const size = height * width;
  const classes = indices.map((index) => ({
    index, area: counts[index] / size, confidence: counts[index] ? sums[index] / counts[index] : null,
  }));
  return { labelMap, classes, ignored: counts[IGNORE] / size };
}

/** Return the function of a background's score: a threshold, a power of 1 - best, or a segmenter's own score. */
function backgroundRule({ names, scores }, options) {
  const { background_threshold: threshold, background_power: power, class_thresholds: perClass = {} } = options;
  const slope = options.threshold_slope ?? 0;
  if (threshold !== undefined) {
    const sloped = (k) => Math.min(Math.max(threshold + slope * (USUAL_MEAN - mean(scores, k)), LOWEST), HIGHEST);
    const thresholds = Float32Array.from(names, (name, k) => perClass[name] ?? (slope ? sloped(k) : threshold));
    return (winner) => thresholds[winner];
  }
  if (power !== undefined) return (_, best) => fround(Math.max(fround(1 - best), 0) ** fround(power));
  return (_winner, _best, sum, own) => own ?? Math.max(fround(1 - sum), 0);
}

/** The mean of map k of (n, h, w). */
function mean({ data, shape: [, height, width] }, k) {
  let sum = 0;
  for (let at = k * height * width; at < (k + 1) * height * width; at++) sum += data[at];
  return sum / (height * width);
}

/** Upsample (n, h, w) maps, corners not aligned: the result's `row(y, k)` is row y of map k, valid until the next call. */
export function upsampleBilinear(maps, height, width) {
  const columns = upsampleColumns(maps, width);
  const { near, far, weight } = samplePositions(maps.shape[1], height);
  const rows = Array.from({ length: maps.shape[0] }, () => new Float32Array(width));
  return {
    row(y, k) {
      const [out, w] = [rows[k], weight[y]];
      const [above, below] = [near[y], far[y]].map((row) => (k * maps.shape[1] + row) * width);
      for (let x = 0; x < width; x++) {
        const a = columns[above + x];
        out[x] = a + fround(fround(columns[below + x] - a) * w);
      }
      return out;
    },
  };
}

/** Upsample the rows of (n, h, w) maps to `width` values each. */
function upsampleColumns({ shape: [count, height, from], data }, width) {
  const { near, far, weight } = samplePositions(from, width);
  const out = new Float32Array(count * height * width);
  for (let row = 0; row < count * height; row++) {
    for (let x = 0; x < width; x++) {
      const a = data[row * from + near[x]];
      out[row * width + x] = a + fround(fround(data[row * from + far[x]] - a) * weight[x]);
    }
  }
  return out;
}

/** Return the two source positions of each position of an upsampled axis, and the second one's weight. */
function samplePositions(count, length) {
  const near = new Int32Array(length);
  const far = new Int32Array(length);
  const weight = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const source = Math.min(Math.max((i + 0.5) * (count / length) - 0.5, 0), count - 1);
    near[i] = Math.trunc(source);
    far[i] = Math.min(near[i] + 1, count - 1);
    weight[i] = source - near[i];
  }
  return { near, far, weight };
}

/** Read NumPy's npz, a zip of npy arrays, stored or deflated: {name: {shape, data}}. */
async function readNpz(buffer) {
  const arrays = {};
  for (const { name, bytes } of await unzip(buffer)) arrays[name.replace(/\.npy$/, "")] = readNpy(bytes);
  return arrays;
}

async function unzip(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("expected a zip file, got something else");
  const entries = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    // The sizes in the local header may be placeholders; those in the directory are always right.
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const packed = new Uint8Array(buffer, start, view.getUint32(at + 20, true));
    const bytes = view.getUint16(at + 10, true) === 8 ? await inflate(packed) : packed;
    entries.push({ name, bytes });
    at += 46 + nameLength + extraLength + commentLength;
  }
  return entries;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isVersion2 = bytes[6] > 1;
  const start = isVersion2 ? 12 : 10;
  const headerLength = isVersion2 ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + headerLength));
  const type = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const shape = [...(/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").matchAll(/\d+/g)].map(Number);
  if (!type || header.includes("'fortran_order': True")) throw new Error("expected an array in C order");
  const count = shape.reduce((product, length) => product * length, 1);
  return { shape, data: readValues(view, start + headerLength, type, count) };
}

function readValues(view, start, type, count) {
  if (type === "<f2") return Float32Array.from({ length: count }, (_, i) => readFloat16(view.getUint16(start + 2 * i, true)));
  if (type === "<i8") return Array.from({ length: count }, (_, i) => Number(view.getBigInt64(start + 8 * i, true)));
  if (type.startsWith("<U")) {
    const width = Number(type.slice(2));
    return Array.from({ length: count }, (_, i) => readText(view, start + 4 * width * i, width));
  }
  throw new Error(`expected float16, int64 or text, got ${type}`);
}

function readFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function readText(view, start, width) {
  const codes = Array.from({ length: width }, (_, i) => view.getUint32(start + 4 * i, true));
  return String.fromCodePoint(...codes.filter((code) => code > 0));
}

/** Answer DecideWorker's messages: scores to keep, or options to decide with. */
function serveDecisions() {
  let maps = null;
  addEventListener("message", ({ data: { scores, options, shape, number } }) => {
    if (scores) {
      maps = scores;
      return;
    }
    const decision = decide({ ...maps, ...shape }, options);
    postMessage({ ...decision, ...shape, number }, [decision.labelMap.buffer]);
  });
}

if (typeof document === "undefined") serveDecisions(); // only a worker has no document
