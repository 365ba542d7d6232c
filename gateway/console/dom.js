// Builds elements. Whatever a server sent becomes a text node or an attribute, never markup.

// What a link may lead to: pages of the console, paths of this gateway, and files that a page made itself.
const SAFE_LINK = /^(#|\/(?!\/)|blob:|data:image\/)/;

/**
 * An element: `h("a", {class: "x", href: "#/jobs", onclick: handler}, "text", child, [more])`.
 * Properties whose names begin with "on" take functions; true sets an attribute, false, null and undefined leave it out.
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "style") Object.assign(element.style, value);
    else if ((name === "href" || name === "src") && !SAFE_LINK.test(value)) throw new Error(`not a link: ${value}`);
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

/** Put `children` in the place of what `parent` holds. */
export function replace(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
  return parent;
}

/** `replace`, for a part that is drawn again by itself: what has the focus in it keeps it, told by its address or name. */
export function refresh(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  replace(parent, ...children);
  if (focused === null) return parent;
  const name = ["href", "data-key", "id"].find((attribute) => focused.hasAttribute(attribute));
  const same = name && [...parent.querySelectorAll(`[${name}]`)].find((one) => one.getAttribute(name) === focused.getAttribute(name));
  same?.focus();
  return parent;
}

function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}
