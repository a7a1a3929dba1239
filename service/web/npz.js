// Reads NumPy's npz: a zip whose entries are npy arrays, stored or deflated.

const halves = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) halves[bits] = sign * fraction * 2 ** -24;
  else if (exponent === 31) halves[bits] = fraction ? NaN : sign * Infinity;
  else halves[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Return the arrays of an npz by name, each as {shape, data}. */
export async function readNpz(buffer) {
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
    // The lengths before the data itself may be placeholders; those in the directory hold.
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
  const long = bytes[6] > 1;
  const start = long ? 12 : 10;
  const headerLength = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + headerLength));
  const type = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const shape = [...(/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").matchAll(/\d+/g)].map(Number);
  if (!type || header.includes("'fortran_order': True")) throw new Error("expected an array in C order");
  const count = shape.reduce((product, length) => product * length, 1);
  return { shape, data: values(view, start + headerLength, type, count) };
}

function values(view, start, type, count) {
  if (type === "<f2") return Float32Array.from({ length: count }, (_, i) => halves[view.getUint16(start + 2 * i, true)]);
  if (type === "<i8") return Array.from({ length: count }, (_, i) => Number(view.getBigInt64(start + 8 * i, true)));
  if (type.startsWith("<U")) {
    const width = Number(type.slice(2));
    return Array.from({ length: count }, (_, i) => text(view, start + 4 * width * i, width));
  }
  throw new Error(`expected float16, int64 or text, got ${type}`);
}

function text(view, start, width) {
  const codes = Array.from({ length: width }, (_, i) => view.getUint32(start + 4 * i, true));
  return String.fromCodePoint(...codes.filter((code) => code > 0));
}
