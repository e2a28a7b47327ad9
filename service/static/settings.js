// One setting of a request: how many of the picture's tokens are kept (R-bar), and speculation.
// Invariant: whatever the slider and the switch show is legal by the model's card.

import { make, onPick, press } from "./dom.js";

const TIER_NAMES = { fast: "Fast", balanced: "Balanced", best: "Best", exact: "Exact" };

export class Setting {
  /** @param {HTMLElement} root  @param {() => void} onChange */
  constructor(root, onChange) {
    this.slider = root.querySelector(".retained");
    this.value = root.querySelector(".slider-value");
    this.tiers = root.querySelector(".tiers");
    this.speculation = root.querySelector(".speculation");
    this.onChange = onChange;
    this.card = null;
    this.slider.disabled = this.speculation.disabled = true;
    this.slider.addEventListener("input", () => this.changed());
    this.speculation.addEventListener("change", () => this.changed());
    onPick(this.tiers, (button) => this.keep(Number(button.dataset.retained)));
  }

  /** @param {any} card the model card; @param {{retained: number, speculation: boolean}} start */
  setCard(card, start) {
    this.card = card;
    const pruning = card.retained_min < card.image_tokens;
    // The step behind the legal range stands for no pruning at all, whose R-bar is far away from it.
    this.slider.min = pruning ? card.retained_min : card.image_tokens;
    this.slider.max = pruning ? card.retained_max + 1 : card.image_tokens;
    // Where every picture has a number of tokens of its own, only the tiers, which are shares, say something.
    this.slider.disabled = !pruning || Boolean(card.image.dynamic);
    this.speculation.disabled = !card.speculation;
    this.tiers.replaceChildren(...Object.entries(card.quality).map(tierButton));
    this.restore(start);
  }

  get retained() {
    const position = Number(this.slider.value);
    return position > this.card.retained_max ? this.card.image_tokens : position;
  }

  /** The tier's name, or null between tiers. */
  get tier() {
    const named = Object.entries(this.card.quality).find(([, retained]) => retained === this.retained);
    return named ? named[0] : null;
  }

  restore({ retained, speculation }) {
    this.speculation.checked = speculation && this.card.speculation;
    this.keep(retained);
  }

  keep(retained) {
    this.slider.value = retained;
    this.changed();
  }

  changed() {
    const all = this.card.image_tokens;
    const told = this.retained === all ? `all ${all}` : `${this.retained} of ${all}`;
    const share = `${Math.round((100 * this.retained) / all)} %`;
    this.value.textContent = this.card.image.dynamic ? share : told;
    const name = this.tier ? `, ${this.tier}` : "";
    this.slider.setAttribute("aria-valuetext", told + name);
    press(this.tiers, this.tiers.querySelector(`[data-retained="${this.retained}"]`));
    this.onChange();
  }

  /** As remembered in the history. */
  snapshot() {
    return { retained: this.retained, speculation: this.speculation.checked };
  }

  /** As request fields. */
  fields() {
    const counted = this.card.image.dynamic ? {} : { retained_tokens: this.retained };
    const kept = this.tier ? { quality: this.tier } : counted;
    return this.card.speculation ? { ...kept, speculation: this.speculation.checked } : kept;
  }

  /** In words, for the history. */
  told() {
    const drafts = this.speculation.checked ? "" : ", no speculation";
    return `${this.tier ?? `${this.retained} tokens`}${drafts}`;
  }
}

function tierButton([name, retained]) {
  const button = make("button", { type: "button" }, TIER_NAMES[name] ?? name, make("small", {}, String(retained)));
  button.dataset.retained = retained;
  button.setAttribute("aria-pressed", "false");
  return button;
}
