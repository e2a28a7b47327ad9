"""Token ids to text, piece by piece: what is given out is never taken back.

Invariant: the pieces put together are the whole answer's text; a character whose bytes are not all there
yet waits. Knows nothing of any tokenizer beyond a `decode` function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
UNFINISHED = "\ufffd"
# Of so many tokens without a whole character the first are given out as they are: the longest character has
# four bytes, and a token has one at least.
MOST_HELD, LONGEST_CHARACTER = 16, 4


class Detokenizer:
    """`decode` may be None (a checkpoint without tokenizer): then every text is empty.

    Decodes a short window, not the whole answer: tokens since the last complete piece, with the tokens
    of that piece before them, because some tokenizers drop a leading space at the start of a text.
    The window stays short whatever the tokens are: those that are no text are forgotten, and bytes that
    never become a character are not held for ever.
    """

    def __init__(self, decode: Decode | None) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._window = 0  # where the decoded window begins
        self._given = 0  # tokens whose text is out
        self.text = ""

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """Takes new tokens, returns the text they completed; with `last` also what was held back.

        One by one, so that what is given out depends on the tokens alone and not on the runs they come in:
        a resumed answer continues where the first attempt stopped.
        """
        if self._decode is None:
            return ""
        pieces = [self._push(self._decode, token) for token in tokens]
        if last:
            pieces.append(self._complete(self._decode, last=True))
        piece = "".join(pieces)
        self.text += piece
        return piece

    def _push(self, decode: Decode, token: int) -> str:
        self._tokens.append(token)
        piece = self._complete(decode, last=False)
        if not piece and not decode([token, token]):
            # A special token. Twice, because a lone space at the start of a text is no text either.
            self._tokens.pop()
            self._given = min(self._given, len(self._tokens))
        return piece

    def _complete(self, decode: Decode, last: bool) -> str:
        before = decode(self._tokens[self._window : self._given])
        now = decode(self._tokens[self._window :])
        if last or not now.endswith(UNFINISHED):
            return self._give(before, now, len(self._tokens))
        if len(self._tokens) - self._given < MOST_HELD:
            return ""
        settled = len(self._tokens) - LONGEST_CHARACTER
        head = decode(self._tokens[self._window : settled])
        # The last character may still become another one; what stands before it may not.
        if not (now.startswith(head) and len(before) < len(head) < len(now)):
            return ""
        return self._give(before, head, settled)

    def _give(self, before: str, now: str, tokens: int) -> str:
        """now: the window's text up to so many tokens."""
        if len(now) > len(before):
            # Only a piece with text moves the window: what adds none is no context.
            self._window = self._given
        self._given = tokens
        return now[len(before) :]
