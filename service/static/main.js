// The page put together: picture, question and settings in; answers, code and history out.
// Invariant: one question is under way at a time, on one panel or (compared) on two.

import { formFields, servedModels, useKey } from "./api.js";
import { CodeView } from "./code.js";
import { make } from "./dom.js";
import { History } from "./history.js";
import { tellLimits } from "./notice.js";
import { AnswerPanel } from "./panel.js";
import { PicturePicker } from "./picture.js";
import { tellVerdict } from "./verdict.js";

const LOOK_AGAIN_MS = 2000;
const LOOK_WHILE_READY_MS = 15000;
const UNAUTHORIZED = 401;
const byId = (id) => document.getElementById(id);

class Playground {
  constructor() {
    this.card = null;
    this.running = null;
    this.question = byId("question");
    this.maxTokens = byId("max-tokens");
    this.compare = byId("compare");
    this.code = new CodeView((side) => this.request(side));
    this.panels = [0, 1].map(() => this.makePanel());
    this.history = new History((asked) => this.reopen(asked));
    this.pictures = new PicturePicker((picture) => this.took(picture));
    this.listen();
    this.arrange();
  }

  makePanel() {
    const root = byId("panel-template").content.cloneNode(true).firstElementChild;
    byId("answers").append(root);
    return new AnswerPanel(root, () => this.code.show());
  }

  /** The panels that a question goes to. */
  get asked() {
    return this.compare.checked ? this.panels : this.panels.slice(0, 1);
  }

  listen() {
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("ask").addEventListener("input", () => this.code.show());
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("ask").requestSubmit();
    });
    byId("cancel").addEventListener("click", () => this.running?.abort());
    this.compare.addEventListener("change", () => this.arrange());
    byId("api-key").addEventListener("change", (event) => {
      useKey(event.target.value);
      this.findModel();
    });
    // The job would outlive the page. A page that goes loads no thumbnails any more: the policy forbids it.
    addEventListener("pagehide", () => {
      this.leaving = true;
      this.running?.abort();
    });
    addEventListener("pageshow", () => (this.leaving = false));
  }

  arrange() {
    const two = this.compare.checked;
    tellVerdict([]);
    this.panels[1].root.hidden = !two;
    byId("answers").classList.toggle("two", two);
    this.panels[0].label(two ? "Answer A" : "Answer");
    this.panels[1].label("Answer B");
    this.code.compare(two);
  }

  // --- the model ---

  async findModel() {
    clearTimeout(this.looking);
    try {
      const [served] = await servedModels();
      if (served) this.setCard(served.id, served.card);
      else this.tellServed("No worker is ready; looking again…", false);
    } catch (failure) {
      this.tellServed(failure.message, false);
      if (failure.status === UNAUTHORIZED) byId("key-row").hidden = false;
    }
    const ready = byId("served").classList.contains("ready");
    this.looking = setTimeout(() => this.findModel(), ready ? LOOK_WHILE_READY_MS : LOOK_AGAIN_MS);
  }

  setCard(name, card) {
    const [rows, columns] = card.grid;
    this.tellServed(`${name} · ${rows} × ${columns} patches`, true);
    if (JSON.stringify(card) === JSON.stringify(this.card)) return; // what the visitor has set stays
    this.card = card;
    this.model = name;
    this.showPicture();
    this.panels[0].setting.setCard(card, { retained: card.default_retained, speculation: true });
    // The other side of a comparison begins as the plain network: nothing pruned, nothing drafted.
    this.panels[1].setting.setCard(card, { retained: card.image_tokens, speculation: false });
    this.setRunning(this.running);
  }

  tellServed(text, ready) {
    byId("served-name").textContent = text;
    byId("served").classList.toggle("ready", ready);
  }

  // --- the question ---

  showPicture() {
    const { picture } = this.pictures;
    if (!picture || !this.card) return;
    tellLimits(this.model, picture);
    for (const panel of this.panels) panel.preview(picture, this.card);
  }

  took(picture) {
    this.showPicture();
    const chips = picture.questions.map((text) => make("button", { type: "button" }, text));
    byId("examples").replaceChildren(...chips);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        this.question.value = chip.textContent;
        this.code.show();
      });
    }
    this.code.show();
  }

  fields(panel) {
    const maxTokens = this.maxTokens.value === "" ? null : this.maxTokens.value;
    return formFields({ question: this.question.value, maxTokens, setting: panel.setting.fields() });
  }

  async ask() {
    const { picture } = this.pictures;
    if (!picture || !this.card || this.running) return;
    this.setRunning(new AbortController());
    const { signal } = this.running;
    this.panels[0].reveal();
    tellVerdict([]);
    const [panels, card] = [this.asked, this.card];
    const asked = { picture, question: this.question.value, maxTokens: this.maxTokens.value, card };
    const settings = panels.map(({ setting }) => ({ snapshot: setting.snapshot(), told: setting.told() }));
    try {
      const runs = panels.map((panel) => panel.run(picture, this.fields(panel), card, signal));
      const happenings = await Promise.all(runs);
      tellVerdict(happenings);
      const sides = happenings.map((happened, i) => ({ ...settings[i], happened }));
      if (!this.leaving) this.history.add({ ...asked, sides });
    } finally {
      this.setRunning(null);
    }
  }

  setRunning(controller) {
    const cancel = byId("cancel");
    const hadFocus = document.activeElement === cancel;
    this.running = controller;
    byId("send").disabled = controller !== null || !this.card;
    this.compare.disabled = controller !== null;
    cancel.hidden = controller === null;
    if (hadFocus && cancel.hidden) byId("send").focus();
  }

  /** @param {import("./history.js").Asked} asked */
  reopen(asked) {
    if (this.running) return;
    this.pictures.use(asked.picture);
    this.question.value = asked.question;
    this.maxTokens.value = asked.maxTokens;
    this.compare.checked = asked.sides.length === 2;
    asked.sides.forEach(({ snapshot, happened }, i) => {
      this.panels[i].setting.restore(snapshot);
      this.panels[i].replay(asked.picture, asked.card, happened);
    });
    this.arrange();
    tellVerdict(asked.sides.map(({ happened }) => happened));
  }

  // --- the code ---

  /** The request of one side as it would be sent now. */
  request(side) {
    if (!this.card) return null;
    const file = this.pictures?.picture?.name ?? "picture.png";
    return { file, fields: this.fields(this.asked[side] ?? this.panels[0]) };
  }
}

const playground = new Playground();
playground.findModel();
playground.pictures.loadScenes();
