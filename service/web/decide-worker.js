// Decides beside the page, so that sliders never stutter.

import { decide } from "./decide.js";

let maps = null;

addEventListener("message", ({ data }) => {
  if (data.maps) maps = data.maps;
  if (!data.options) return;
  const decision = decide(maps, data.options);
  postMessage({ ...decision, number: data.number }, [decision.labelMap.buffer]);
});
