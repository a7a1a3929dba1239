// From soft scores to a label map: the rule of models/inference/masks.py, number by number in 32 bits.

const { fround } = Math;
const IGNORE = 255;

/** Where the places of a stretched axis come from: corners not aligned. */
function places(count, length) {
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

/** Stretch the columns of (n, h, w) maps: {shape, data} → rows of `width` values. */
function stretchColumns({ shape: [count, height, from], data }, width) {
  const { near, far, weight } = places(from, width);
  const out = new Float32Array(count * height * width);
  for (let row = 0; row < count * height; row++) {
    for (let x = 0; x < width; x++) {
      const a = data[row * from + near[x]];
      out[row * width + x] = a + fround(fround(data[row * from + far[x]] - a) * weight[x]);
    }
  }
  return out;
}

/** Prepare (n, h, w) maps for an image of (height, width): the result's `row(y, k)` is line y of map k. */
export function stretch(maps, height, width) {
  const columns = stretchColumns(maps, width);
  const { near, far, weight } = places(maps.shape[1], height);
  const lines = Array.from({ length: maps.shape[0] }, () => new Float32Array(width));
  return {
    row(y, k) {
      const [line, w] = [lines[k], weight[y]];
      const [above, below] = [near[y], far[y]].map((row) => (k * maps.shape[1] + row) * width);
      for (let x = 0; x < width; x++) {
        const a = columns[above + x];
        line[x] = a + fround(fround(columns[below + x] - a) * w);
      }
      return line;
    },
  };
}

/**
 * Decide a label map.
 *
 * `maps`: {scores: {shape, data}, background or null, indices, names, height, width}; `options`: as in a job's document.
 * Returns {labelMap, classes: [{index, area, confidence}], ignored}.
 */
export function decide(maps, options) {
  const { height, width, indices } = maps;
  const labelMap = new Uint8Array(height * width);
  const counts = new Float64Array(256);
  const sums = new Float64Array(256);
  const judge = judgeOf(maps, options);
  const scores = indices.length ? stretch(maps.scores, height, width) : null;
  const own = maps.background ? stretch(maps.background, height, width) : null;
  const least = fround(options.min_confidence);
  for (let y = 0; (scores || own) && y < height; y++) {
    const lines = indices.map((_, k) => scores.row(y, k));
    const given = own?.row(y, 0);
    for (let x = 0; x < width; x++) {
      let winner = 0;
      let best = lines.length ? lines[0][x] : 0;
      let total = best;
      for (let k = 1; k < lines.length; k++) {
        const score = lines[k][x];
        total = fround(total + score);
        if (score > best) [winner, best] = [k, score];
      }
      const background = judge(winner, best, total, given?.[x]);
      let whole = fround(total + background);
      if (given) whole = Math.max(whole, 1);
      const share = fround(Math.max(best, background) / Math.max(whole, fround(1e-12)));
      const label = share < least ? IGNORE : best > background ? indices[winner] : 0;
      labelMap[y * width + x] = label;
      counts[label] += 1;
      sums[label] += share;
    }
  }
  const size = height * width;
  const classes = indices.map((index) => ({
    index, area: counts[index] / size, confidence: counts[index] ? sums[index] / counts[index] : null,
  }));
  return { labelMap, classes, ignored: counts[IGNORE] / size };
}

/** Return the background's score against a winner: a constant, a power of what the best leaves, or its own. */
function judgeOf({ names }, options) {
  const { background_threshold: threshold, background_power: power, class_thresholds: known = {} } = options;
  if (threshold !== undefined) {
    const thresholds = Float32Array.from(names, (name) => known[name] ?? threshold);
    return (winner) => thresholds[winner];
  }
  if (power !== undefined) return (_, best) => fround(Math.max(fround(1 - best), 0) ** fround(power));
  return (_winner, _best, total, given) => given ?? Math.max(fround(1 - total), 0);
}
