// A round of the stream as coloured pieces of text: whose token is which.
// Invariant: the pieces put together are the round's text, whatever the event holds.

export const KINDS = { drafted: "drafted", own: "own", mixed: "mixed" };

const kindOf = (drafted) => (drafted ? KINDS.drafted : KINDS.own);

/**
 * @param {{text: string, drafted: boolean[], pieces?: string[]}} round `pieces`: the text of each token; without
 *     it a round of both kinds cannot be split and stays one piece
 * @returns {{text: string, kind: string, title: string}[]}
 */
export function coloured(round) {
  if (!round.text) return [];
  if (fits(round)) {
    return round.pieces
      .map((text, i) => ({ text, kind: kindOf(round.drafted[i]), title: "" }))
      .filter((piece) => piece.text);
  }
  const drafted = round.drafted.filter(Boolean).length;
  const uniform = drafted === 0 || drafted === round.drafted.length;
  const title = uniform ? "" : `${drafted} of these ${round.drafted.length} tokens were drafted`;
  return [{ text: round.text, kind: uniform ? kindOf(drafted > 0) : KINDS.mixed, title }];
}

function fits({ text, drafted, pieces }) {
  return Array.isArray(pieces) && pieces.length === drafted.length && pieces.join("") === text;
}
