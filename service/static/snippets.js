// The request on screen as code: curl, Python, JavaScript.
// Invariant: what is shown sends exactly the fields that the page sends, whatever is in them.

/**
 * @param {"curl" | "python" | "javascript"} language
 * @param {{url: string, file: string, fields: Record<string, string | number | boolean>, withKey?: boolean}} request
 *     withKey: the service wants an API key; the code takes it from where secrets belong, never from the page
 */
export function snippet(language, request) {
  return { curl, python, javascript }[language](request);
}

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// curl reads , ; and quotes in a file name itself, unless it is quoted in its own way.
const curlFile = (name) => `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

function curl({ url, file, fields, withKey }) {
  const plain = /^[\w./-]+$/.test(file);
  const lines = [`curl -N ${shell(url)}`, `-F ${plain ? `image=@${file}` : shell(`image=@${curlFile(file)}`)}`];
  if (withKey) lines.push('-H "Authorization: Bearer $TWIGSERVE_API_KEY"');
  for (const [name, value] of Object.entries(fields)) {
    // --form-string, because -F would take a leading @ or < for a file.
    lines.push(typeof value === "string" && !/^\w+$/.test(value)
      ? `--form-string ${shell(`${name}=${value}`)}`
      : `-F ${name}=${value}`);
  }
  return lines.join(" \\\n  ");
}

// JSON strings are Python strings; a form sends text, so numbers and booleans are texts too.
function python({ url, file, fields, withKey }) {
  const entries = Object.entries(fields).map(([name, value]) => `    ${quote(name)}: ${quote(String(value))},`);
  const headers = withKey ? `\n    headers={"Authorization": "Bearer " + os.environ["TWIGSERVE_API_KEY"]},` : "";
  return `import json
${withKey ? "import os\n" : ""}
import httpx  # pip install httpx

fields = {
${entries.join("\n")}
}
with open(${quote(file)}, "rb") as picture, httpx.stream(
    "POST", ${quote(url)},
    data=fields, files={"image": picture}, timeout=300,${headers}
) as response:
    if response.is_error:
        raise SystemExit(response.read().decode())
    event = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            event = line[7:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
            if event == "token":
                print(data["text"], end="", flush=True)
            elif event == "done":
                print("\\n", data["metrics"])
            else:
                raise SystemExit(data["error"]["message"])
`;
}

// Runs as it is in Node, Deno and Bun; in a page the file comes from the visitor.
function javascript({ url, file, fields, withKey }) {
  const lines = Object.entries(fields).map(([name, value]) => `form.append(${quote(name)}, ${quote(String(value))});`);
  const headers = withKey ? "\n  headers: { Authorization: `Bearer ${process.env.TWIGSERVE_API_KEY}` }," : "";
  return `// Save as request.mjs and run: node request.mjs
import { readFile } from "node:fs/promises";

const form = new FormData();
// In a web page: document.querySelector("input[type=file]").files[0] instead of the Blob.
form.append("image", new Blob([await readFile(${quote(file)})]), ${quote(file)});
${lines.join("\n")}

const response = await fetch(${quote(url)}, {
  method: "POST",
  body: form,${headers}
});
if (!response.ok) throw new Error((await response.json()).error.message);

const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
let text = "";
for (;;) {
  const { value, done } = await reader.read();
  if (done) break;
  const events = (text + value).split("\\n\\n");
  text = events.pop();
  for (const event of events) {
    const type = event.match(/^event: (.*)$/m)?.[1];
    if (!type) continue; // a heartbeat
    const data = JSON.parse(event.match(/^data: (.*)$/m)[1]);
    if (type === "token") process.stdout.write(data.text);
    else if (type === "done") console.log("\\n", data.metrics);
    else throw new Error(data.error.message);
  }
}
`;
}

// U+2028 and its like are legal in both languages' strings; lone surrogates JSON escapes by itself.
const quote = (text) => JSON.stringify(text);
