// One answer on the page: its setting, its figures, its streamed text, its error, its keep-map.
// Invariant: a panel shows one run at a time, and a run always ends in exactly one of: done, failed, cancelled.

import { ApiFailure } from "./api.js";
import { Clock } from "./clock.js";
import { make } from "./dom.js";
import { describe } from "./job.js";
import { KeepMap } from "./keepmap.js";
import { Setting } from "./settings.js";
import { Tiles } from "./tiles.js";
import { KINDS, coloured } from "./tokens.js";

/** @typedef {{type: "token" | "resuming" | "done" | "failed" | "cancelled", data?: any, at: number}} Happening */

const FINISHED = { stop: "Finished.", length: "Stopped at the longest answer allowed." };

export class AnswerPanel {
  /** @param {HTMLElement} root  @param {() => void} onSetting */
  constructor(root, onSetting) {
    this.root = root;
    this.title = root.querySelector(".panel-title");
    this.status = root.querySelector(".status");
    this.answer = root.querySelector(".answer");
    this.error = root.querySelector(".error");
    this.mixedLegend = root.querySelector(".legend-mixed");
    this.clock = new Clock(root.querySelector(".clock"));
    this.fresh = true;
    this.setting = new Setting(root, onSetting);
    this.tiles = new Tiles(root);
    this.map = new KeepMap(root.querySelector(".map"));
    this.label("Answer");
    this.status.textContent = "The answer appears here, word by word. Below it: whose words they are.";
  }

  label(title) {
    this.title.textContent = title;
    this.answer.setAttribute("aria-label", `${title}, as it comes`);
    this.root.setAttribute("aria-label", title);
    this.root.querySelector(".slider-label").htmlFor = this.setting.slider.id = `${title.replace(" ", "-")}-kept`;
  }

  /**
   * Asks, and shows what comes. Returns all that happened, so that `replay` can show it again.
   * @returns {Promise<Happening[]>}
   */
  async run(picture, fields, card, signal) {
    const began = performance.now();
    const happened = [];
    const happen = (type, data) => {
      const happening = { type, data, at: performance.now() - began };
      happened.push(happening);
      this.show(happening);
    };
    this.begin(picture, card);
    try {
      for await (const { type, data } of describe(picture, fields, signal)) happen(type, data);
    } catch (broken) {
      if (signal.aborted) happen("cancelled");
      else if (broken instanceof ApiFailure) happen("failed", broken);
      else throw broken;
    }
    return happened;
  }

  /** @param {Happening[]} happened */
  replay(picture, card, happened) {
    this.begin(picture, card);
    happened.forEach((happening) => this.show(happening));
  }

  /** What will be asked about, as long as nothing has been asked. */
  preview(picture, card) {
    if (this.fresh) this.map.preview(picture.bitmap, card);
  }

  begin(picture, card) {
    this.fresh = false;
    this.answer.replaceChildren();
    this.kind = null;
    this.error.hidden = true;
    this.mixedLegend.hidden = true;
    this.tiles.begin(0);
    this.map.begin(picture.bitmap, card);
    this.setBusy(true, "Waiting for the first token…");
  }

  /** On a phone the answer lies below the question. */
  reveal() {
    if (this.root.getBoundingClientRect().top < innerHeight / 2) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.root.scrollIntoView({ behavior: still ? "instant" : "smooth" });
  }

  setBusy(busy, told) {
    // While busy a screen reader holds back; it then reads the whole answer, not crumbs of it.
    this.answer.setAttribute("aria-busy", String(busy));
    this.clock.run(busy);
    this.status.textContent = told;
  }

  /** @param {Happening} happening */
  show({ type, data, at }) {
    this[type](data, at); // a method for each type of Happening
  }

  token(round, at) {
    this.status.textContent = "Answering…";
    this.tiles.round(round, at);
    for (const { text, kind, title } of coloured(round)) {
      if (kind === KINDS.mixed) this.mixedLegend.hidden = false;
      // The space before a run is nobody's: coloured, it would hang at the end of a line.
      const space = kind === this.kind ? "" : text.match(/^\s*/)[0];
      this.kind = kind;
      this.answer.append(space, make("span", { className: `token ${kind}`, title }, text.slice(space.length)));
    }
  }

  resuming() {
    this.status.textContent = "The connection broke; the answer goes on from where it stopped…";
  }

  done(answer) {
    this.tiles.done(answer);
    this.map.show(answer.token_map);
    this.setBusy(false, FINISHED[answer.finish_reason] ?? `Ended: ${answer.finish_reason}.`);
  }

  cancelled() {
    this.setBusy(false, "Cancelled; the work on the server was stopped.");
    this.map.describe("An unfinished answer has no map.");
  }

  /** @param {ApiFailure} failure */
  failed(failure) {
    this.setBusy(false, "");
    this.map.hide();
    this.error.querySelector(".error-message").textContent = failure.message;
    const details = [
      ["Code", failure.code],
      ["Field", failure.param],
      ["Type", failure.type],
      ["Status", failure.status],
      ["Try again after", failure.retryAfter && `${failure.retryAfter} s`],
      ["Request", failure.requestId],
    ];
    const shown = details.filter(([, value]) => value !== null && value !== undefined);
    this.error.querySelector(".error-details").replaceChildren(...shown.map(detail));
    this.error.hidden = false;
  }
}

function detail([name, value]) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, make("code", {}, String(value))));
}
