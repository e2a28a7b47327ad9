// One streamed request and the job that the service made of it: its events to their end, over as many
// connections as that takes.
// Invariant: every event is given out once and in order; an abort cancels the job, not only the connection.

import { ApiFailure, facts, send } from "./api.js";
import { readEvents } from "./sse.js";

// A lost connection is tried again so often in a row, each time after twice the wait: 8 s in all.
const RECONNECTS = 5;
const FIRST_WAIT_MS = 250;

/**
 * @param {{blob: Blob, name: string}} picture
 * @param {Record<string, string | number | boolean>} fields
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{type: "token" | "done" | "resuming", data?: any}>} ends behind `done`
 */
export async function* describe(picture, fields, signal) {
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  yield* new StreamedJob(form, signal).events();
}

class StreamedJob {
  constructor(form, signal) {
    this.signal = signal;
    this.link = new AbortController();
    this.lastId = null;
    // The key makes the job outlive its connection. Not with `signal`: see `cancel`.
    const headers = { "Idempotency-Key": randomKey() };
    this.posted = send("v1/describe", { method: "POST", body: form, headers, signal: this.link.signal });
    signal.addEventListener("abort", () => this.cancel(), { once: true });
  }

  async *events() {
    let response = await aborting(this.posted, this.signal);
    const about = facts(response);
    const job = jobPath(response);
    for (;;) {
      for await (const event of this.untilCut(response)) {
        const data = JSON.parse(event.data);
        if (event.type === "error") throw new ApiFailure(data.error, about);
        yield { type: event.type, data };
        if (event.type === "done") return;
      }
      if (!job) throw broken(about);
      yield { type: "resuming" };
      response = await this.reconnect(job, about);
    }
  }

  /** The events of one connection; it ends without an error where the connection was lost. */
  async *untilCut(response) {
    try {
      for await (const event of readEvents(response.body)) {
        this.lastId = event.id || this.lastId;
        yield event;
      }
    } catch (lost) {
      if (this.signal.aborted) throw lost;
    }
  }

  async reconnect(job, about) {
    const headers = this.lastId ? { "Last-Event-ID": this.lastId } : {};
    let wait = FIRST_WAIT_MS;
    for (let left = RECONNECTS; left > 0; left -= 1) {
      await aborting(new Promise((resolve) => setTimeout(resolve, wait)), this.signal);
      try {
        return await send(`${job}/events`, { headers, signal: this.link.signal });
      } catch (failure) {
        // A proxy answers 502 or 503 while the gateway behind it starts again.
        const refused = failure.status && failure.status < 500;
        if (refused || this.signal.aborted) throw failure;
        wait *= 2;
      }
    }
    throw broken(about);
  }

  /** Before the head of the answer the job has no name here: the upload ends first, in the background. */
  async cancel() {
    const job = jobPath(await this.posted.catch(() => null));
    if (job) send(job, { method: "DELETE", keepalive: true }).catch(() => {});
    this.link.abort();
  }
}

/** Relative, so that it holds behind a proxy's path prefix. */
function jobPath(response) {
  return response?.headers.get("Content-Location")?.replace(/^\//, "") ?? null;
}

function broken(about) {
  return new ApiFailure({ message: "The stream ended before the answer did.", code: "stream_broken" }, about);
}

function aborting(promise, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new DOMException("Cancelled.", "AbortError"));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, reject);
  });
}

/** Not crypto.randomUUID, which plain HTTP on another host does not have. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `playground-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
