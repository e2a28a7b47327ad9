// The four figures of an answer: measured here while it streams, the server's own at its end.
// Invariant: a figure that is not known yet is a dash, never a guess.

const UNKNOWN = "–";
const FIELDS = ["speed", "first", "acceptance", "kept"];

const percent = (share) => `${Math.round(share * 100)} %`;
const ms = (value) => (value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${Math.round(value)} ms`);
const perSecond = (value) => (value >= 100 ? String(Math.round(value)) : value.toFixed(1));

export class Tiles {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.values = new Map(FIELDS.map((name) => [name, root.querySelector(`.${name}`)]));
    this.notes = new Map(FIELDS.map((name) => [name, root.querySelector(`.${name}-note`)]));
    this.begin(0);
  }

  /** @param {number} now milliseconds, on any one clock */
  begin(now) {
    this.began = now;
    this.firstAt = null;
    this.tokens = this.firstTokens = this.drafted = this.rounds = 0;
    for (const name of FIELDS) this.set(name, UNKNOWN);
  }

  set(name, value, note = "") {
    this.values.get(name).textContent = value;
    this.notes.get(name).textContent = note;
  }

  round({ token_ids: ids, drafted }, now) {
    this.tokens += ids.length;
    this.rounds += 1;
    this.drafted += drafted.filter(Boolean).length;
    if (this.firstAt === null) {
      this.firstAt = now;
      this.firstTokens = this.tokens;
      this.set("first", ms(now - this.began));
    }
    const seconds = (now - this.firstAt) / 1000;
    const decoded = this.tokens - this.firstTokens;
    if (seconds > 0 && decoded > 0) this.set("speed", perSecond(decoded / seconds), `${this.tokens} tokens so far`);
    // How many drafts were refused only the end tells.
    if (this.drafted) this.set("acceptance", percent(this.drafted / this.tokens), "of the text drafted so far");
  }

  /** @param {any} answer the API's whole answer */
  done({ usage, metrics, token_map: map }) {
    const { queue_ms, encode_ms, prefill_ms, tokens_per_second } = metrics;
    const written = `${usage.completion_tokens} tokens`;
    this.set("speed", tokens_per_second > 0 ? perSecond(tokens_per_second) : UNKNOWN, written);
    const parts = [queue_ms, encode_ms, prefill_ms].map(Math.round);
    this.set("first", ms(metrics.time_to_first_token_ms), `${parts[0]} ms in the queue, ${parts[1]} vision, ${parts[2]} prompt`);
    this.speculative(metrics.speculative_decoding);
    this.pruned(usage.prompt_tokens_details, map);
  }

  speculative(drafts) {
    if (!drafts.num_draft_tokens) {
      this.set("acceptance", UNKNOWN, "nothing was drafted");
      return;
    }
    const counts = `${drafts.num_accepted_draft_tokens} of ${drafts.num_draft_tokens} drafts`;
    const length = `${drafts.mean_acceptance_length.toFixed(1)} tokens a round`;
    this.set("acceptance", percent(drafts.draft_acceptance_rate), `${counts} · ${length}`);
  }

  pruned({ image_tokens: all, retained_image_tokens: average }, map) {
    const kept = map ? map.kept.length : average;
    this.set("kept", `${kept} of ${all}`, kept === all ? "nothing pruned" : `in the middle layers; ${average} on average`);
  }
}
