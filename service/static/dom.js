// Making elements, pressing buttons, copying text. Invariant: text is only ever set as text, never parsed as markup.

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] DOM properties, by their names in JavaScript
 * @param {...(Node | string)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Marks the one pressed button of a group. */
export function press(group, chosen) {
  for (const button of group.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button === chosen));
  }
}

/** Calls `pick(button)` for a click on any button of the group. */
export function onPick(group, pick) {
  group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && group.contains(button) && !button.disabled) pick(button);
  });
}

/** The clipboard is there only in secure contexts; elsewhere the text is left selected. */
export async function copyText(element) {
  getSelection().selectAllChildren(element);
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    return false;
  }
}
