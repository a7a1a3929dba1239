// Small words for the document.

export const byId = (id) => document.getElementById(id);

/** Make an element: properties of `props` are set, `aria-…`, `data-…`, `role` and `scope` as attributes. */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (/^(aria-|data-|role$|scope$|for$)/.test(name)) element.setAttribute(name, value);
    else if (value !== undefined) element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const percent = (share) =>
  share === 0 ? "0 %" : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

/** Tell a screen reader; the same words twice are said once. */
export function say(words) {
  const status = byId("status");
  if (status.textContent !== words) status.textContent = words;
}

/** Hand bytes to the person as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
