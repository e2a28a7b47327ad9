// Server-sent events out of a fetch body, because EventSource cannot POST.
// Invariant: an event is given out only when its closing blank line has come; comments are dropped.
// Source of the format: WHATWG HTML, "Server-sent events".

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{id: string, type: string, data: string}>}
 */
export async function* readEvents(body) {
  let id = "";
  let type = "";
  let data = [];
  for await (const line of readLines(body)) {
    if (line === "") {
      if (data.length) yield { id, type: type || "message", data: data.join("\n") };
      type = "";
      data = [];
      continue;
    }
    const { field, value } = parseLine(line);
    if (field === "data") data.push(value);
    else if (field === "event") type = value;
    else if (field === "id") id = value;
  }
}

function parseLine(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return { field: line, value: "" };
  const value = line.slice(colon + 1);
  return { field: line.slice(0, colon), value: value.startsWith(" ") ? value.slice(1) : value };
}

async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      // A lone \r at the end may be the first half of \r\n: it waits.
      const text = rest + value;
      const held = text.endsWith("\r") ? 1 : 0;
      const lines = text.slice(0, text.length - held).split(/\r\n|\r|\n/);
      rest = lines.pop() + text.slice(text.length - held);
      yield* lines;
    }
  } finally {
    // Leaving early (an error in the page, a cancelled request) lets the connection go as well.
    reader.cancel().catch(() => {});
  }
}
