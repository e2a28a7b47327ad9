// The service's HTTP API as the page uses it: requests and failures, the served models, a request's fields.
// Invariant: whatever goes wrong leaves here as an ApiFailure with what the API told; only an abort by the
// caller passes through as the AbortError it is. Knows nothing of the page.

const base = new URL("../", import.meta.url);

export const endpoint = (path) => new URL(path, base).href;

// Lives as long as the page, and nowhere else.
let apiKey = "";

/** @param {string} key empty: none */
export function useKey(key) {
  apiKey = key.trim();
}

export const hasKey = () => apiKey !== "";

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

/** Fetches a path of the API; whatever is not a success is thrown. */
export async function send(path, options) {
  const headers = apiKey ? { ...options.headers, Authorization: `Bearer ${apiKey}` } : options.headers;
  let response;
  try {
    response = await fetch(endpoint(path), { ...options, headers });
  } catch (broken) {
    throw unreachable(broken);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

function unreachable(broken) {
  if (broken.name === "AbortError") return broken;
  return new ApiFailure({ message: "The connection to the service failed.", code: "unreachable" });
}

/** A proxy in between may answer with something that is not our error shape. */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? { message: `The service answered ${response.status} ${response.statusText}.` };
  return new ApiFailure(error, facts(response));
}

export function facts(response) {
  return {
    status: response.status,
    requestId: response.headers.get("X-Request-ID"),
    retryAfter: response.headers.get("Retry-After"),
  };
}
