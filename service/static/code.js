// The request on screen as code: which language, of which side, and copying it.
// Invariant: what is shown is the request as it would be sent now. Knows nothing of how it is sent.

import { endpoint, hasKey } from "./api.js";
import { copyText, onPick, press } from "./dom.js";
import { snippet } from "./snippets.js";

const byId = (id) => document.getElementById(id);

export class CodeView {
  /** @param {(side: number) => {file: string, fields: Record<string, any>} | null} request null: not known yet */
  constructor(request) {
    this.request = request;
    this.language = "curl";
    this.side = 0;
    onPick(byId("languages"), (button) => this.pick(button, () => (this.language = button.dataset.language)));
    onPick(byId("code-side"), (button) => this.pick(button, () => (this.side = Number(button.dataset.side))));
    byId("copy").addEventListener("click", () => this.copy());
  }

  /** One side, or two to choose from. */
  compare(two) {
    byId("code-side").hidden = !two;
    this.show();
  }

  pick(button, change) {
    change();
    press(button.parentElement, button);
    this.show();
  }

  show() {
    const request = this.request(this.side);
    if (!request) return;
    const about = { url: endpoint("v1/describe"), withKey: hasKey(), ...request };
    byId("snippet").textContent = snippet(this.language, about);
  }

  async copy() {
    const button = byId("copy");
    const copied = await copyText(byId("snippet"));
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}
