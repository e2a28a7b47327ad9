// What comparing two answers came to, in words.
// Invariant: says only what the two answers show: whether they agree, where they part, how long each took.

const SHOWN_WORDS = 4;

/** @param {import("./panel.js").Happening[][]} sides what happened on A and on B; none: there is nothing to tell */
export function tellVerdict(sides) {
  const words = verdict(sides);
  const element = document.getElementById("verdict");
  element.textContent = words ?? "";
  element.hidden = words === null;
}

function verdict(sides) {
  const ends = sides.map((happened) => happened.at(-1));
  if (ends.length !== 2 || ends.some(({ type }) => type !== "done")) return null;
  const [a, b] = ends.map(({ at }) => `${(at / 1000).toFixed(1)} s`);
  const told = difference(...ends.map(({ data }) => data.text));
  return `${told} A was done after ${a}, B after ${b}; asked at once, they shared the machine.`;
}

function difference(a, b) {
  if (a === b) return "The two answers are the same, word for word.";
  const [left, right] = [words(a), words(b)];
  let same = 0;
  while (same < left.length && left[same] === right[same]) same += 1;
  if (!same) return "The two answers differ from the first word on.";
  const before = left.slice(Math.max(0, same - SHOWN_WORDS), same).join(" ");
  return `The two answers part after “${before}”: ${next("A", left, same)}, ${next("B", right, same)}.`;
}

const words = (text) => text.split(/\s+/).filter(Boolean);

const next = (name, said, from) =>
  from < said.length ? `${name} goes on “${said.slice(from, from + SHOWN_WORDS).join(" ")}”` : `${name} ends`;
