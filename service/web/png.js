// Writes a label map as the service does: a palette PNG whose pixel values are the class indices.

const table = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = table[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, crc(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** Encode a label map; `text` is provenance by keyword, `palette` 768 bytes. */
export async function labelMapPng(labelMap, width, height, palette, text) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3], 8); // 8 bits, palette
  const rows = new Uint8Array((width + 1) * height); // each row begins with its filter: none
  for (let y = 0; y < height; y++) rows.set(labelMap.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packing = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(packing).arrayBuffer());
  const encode = (words) => new TextEncoder().encode(words);
  // iTXt: keyword, not compressed, no language, UTF-8.
  const notes = Object.entries(text).map(([key, words]) => chunk("iTXt", encode(`${key}\0\0\0\0\0${words}`)));
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", header), chunk("PLTE", palette)];
  return new Blob([...parts, ...notes, chunk("IDAT", packed), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}
