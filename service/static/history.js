// What was asked in this tab: a list to come back to. In memory only; it goes with the tab.
// Invariant: the newest stands first, and no more than LIMIT are held.

import { make } from "./dom.js";

/**
 * @typedef {object} Asked
 * @property {import("./picture.js").Picture} picture
 * @property {string} question
 * @property {string} maxTokens as typed
 * @property {any} card
 * @property {{snapshot: any, told: string, happened: import("./panel.js").Happening[]}[]} sides one, or two compared
 */

const LIMIT = 20;

export class History {
  /** @param {(asked: Asked) => void} onOpen */
  constructor(onOpen) {
    this.onOpen = onOpen;
    this.section = document.getElementById("past");
    this.list = document.getElementById("history");
  }

  /** @param {Asked} asked */
  add(asked) {
    const button = make("button", { type: "button" }, thumbnail(asked.picture), words(asked));
    button.addEventListener("click", () => this.onOpen(asked));
    this.list.prepend(make("li", {}, button));
    while (this.list.children.length > LIMIT) this.list.lastElementChild.remove();
    this.section.hidden = false;
  }
}

function thumbnail(picture) {
  if (!picture.bitmap) return make("span", { className: "no-thumbnail" });
  return make("img", { src: picture.url, alt: picture.name, width: 48, height: 48 });
}

function words({ question, sides }) {
  const told = sides.map((side) => side.told).join(" against ");
  return make(
    "span",
    { className: "past-words" },
    make("strong", {}, question),
    make("span", {}, outcome(sides[0].happened)),
    make("small", {}, told),
  );
}

function outcome(happened) {
  const { type, data } = happened.at(-1);
  if (type === "done") return data.text;
  return type === "failed" ? data.message : "Cancelled.";
}
