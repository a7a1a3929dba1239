// Decides beside the page, so that sliders never stutter.

import { decide } from "./decide.js";

let maps = null;

addEventListener("message", ({ data: { maps: others, options, shape, number } }) => {
  if (others) {
    maps = others;
    return;
  }
  const decision = decide({ ...maps, ...shape }, options);
  postMessage({ ...decision, ...shape, number }, [decision.labelMap.buffer]);
});
