// The colors of masks: PASCAL VOC's, and brighter ones of the same hue to lay over photos.

/** 768 bytes: bits of the index, lowest first, fill red, green and blue from the highest bit. */
export const voc = new Uint8Array(768);
for (let index = 0; index < 256; index++) {
  for (let bit = 0; bit < 8; bit++) {
    for (let channel = 0; channel < 3; channel++) {
      voc[3 * index + channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit);
    }
  }
}

/** As voc, but each color at its brightest; what is ignored is almost white. */
export const vivid = new Uint8Array(768);
for (let index = 0; index < 256; index++) {
  const color = voc.subarray(3 * index, 3 * index + 3);
  const most = Math.max(...color, 1);
  for (let channel = 0; channel < 3; channel++) {
    vivid[3 * index + channel] = index === 255 ? 224 : Math.floor((color[channel] * 255) / most);
  }
}
