// The service's HTTP API as the page uses it: the served models, and one streamed description.
// Invariant: whatever goes wrong leaves here as an ApiFailure with what the API told; only an abort by the
// caller passes through as the AbortError it is. Knows nothing of the page.

import { readEvents } from "./sse.js";

const base = new URL("../", import.meta.url);

export const endpoint = (path) => new URL(path, base).href;

export class ApiFailure extends Error {
  /**
   * @param {{message: string, type?: string, code?: string, param?: string | null}} error
   * @param {{status?: number, requestId?: string | null, retryAfter?: string | null}} [response]
   */
  constructor(error, response = {}) {
    super(error.message);
    this.type = error.type ?? null;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.status = response.status ?? null;
    this.requestId = response.requestId ?? null;
    this.retryAfter = response.retryAfter ?? null;
  }
}

/** The models that could take a request now; none is an empty list. */
export async function servedModels() {
  const response = await send("v1/models", {});
  return (await response.json()).data;
}

/**
 * The form fields of one request, as sent and as shown in the snippets.
 * @param {{question: string, maxTokens: number | null, setting: Record<string, string | number | boolean>}} asked
 */
export function formFields({ question, maxTokens, setting }) {
  const fields = { prompt: question, ...setting };
  if (maxTokens !== null) fields.max_tokens = maxTokens;
  return { ...fields, include: "token_map", stream: true };
}

/**
 * @param {{blob: Blob, name: string}} picture
 * @param {Record<string, string | number | boolean>} fields
 * @param {AbortSignal} signal aborting it closes the connection, and the server cancels the work
 * @returns {AsyncGenerator<{type: "token" | "done", data: any}>} ends behind `done`
 */
export async function* describe(picture, fields, signal) {
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  const response = await send("v1/describe", { method: "POST", body: form, signal });
  const about = facts(response);
  for await (const event of connected(readEvents(response.body), about)) {
    const data = JSON.parse(event.data);
    if (event.type === "error") throw new ApiFailure(data.error, about);
    yield { type: event.type, data };
    if (event.type === "done") return;
  }
  throw new ApiFailure({ message: "The stream ended before the answer did.", code: "stream_broken" }, about);
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(endpoint(path), options);
  } catch (broken) {
    throw unreachable(broken);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function* connected(events, about) {
  try {
    yield* events;
  } catch (broken) {
    throw unreachable(broken, about);
  }
}

function unreachable(broken, about = {}) {
  if (broken.name === "AbortError" || broken instanceof ApiFailure) return broken;
  return new ApiFailure({ message: "The connection to the service failed.", code: "unreachable" }, about);
}

/** A proxy in between may answer with something that is not our error shape. */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? { message: `The service answered ${response.status} ${response.statusText}.` };
  return new ApiFailure(error, facts(response));
}

function facts(response) {
  return {
    status: response.status,
    requestId: response.headers.get("X-Request-ID"),
    retryAfter: response.headers.get("Retry-After"),
  };
}
