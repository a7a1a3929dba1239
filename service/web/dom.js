// Helpers for the document.

export const byId = (id) => document.getElementById(id);

/** Make an element: `props` are set as properties; `aria-…`, `data-…`, `role`, `scope` and `for` as attributes. */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (/^(aria-|data-|role$|scope$|for$)/.test(name)) element.setAttribute(name, value);
    else if (value !== undefined) element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Announce a message to screen readers; repeating the same message does nothing. */
export function announce(message) {
  const status = byId("status");
  if (status.textContent !== message) status.textContent = message;
}
