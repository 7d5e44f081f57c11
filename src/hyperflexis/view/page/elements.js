// Making and changing elements. Text is always text: nothing that comes from outside is ever read as HTML.

/** An element with properties (`class`, `data`, `aria-…`, any attribute, `onclick`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function drawn(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Change a text, if it is another one. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function set(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Set a variable of its style. */
export function vary(node, name, value) {
  const text = String(value);
  if (node.style.getPropertyValue(name) !== text) node.style.setProperty(name, text);
}

export const byId = (id) => document.getElementById(id);

/** A word that opens a story. */
export function opener(text, target) {
  return element("button", { class: "open", type: "button", data: { open: target } }, text);
}

/** A sentence in which the names of instances open their stories. */
export function linked(text) {
  return text.split(/(\bi\d+\b)/).map((part, index) => (index % 2 ? opener(part, `instance/${part.slice(1)}`) : part));
}
