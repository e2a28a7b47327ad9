"""Token ids to text, piece by piece: what is given out is never taken back.

Invariant: the pieces put together are the whole answer's text; a character whose bytes are not all there
yet waits. Knows nothing of any tokenizer beyond a `decode` function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
UNFINISHED = "\ufffd"


class Detokenizer:
    """`decode` may be None (a checkpoint without tokenizer): then every text is empty.

    Decodes a short window, not the whole answer: tokens since the last complete piece, with the tokens
    of that piece before them, because some tokenizers drop a leading space at the start of a text.
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
        return self._complete(decode, last=False)

    def _complete(self, decode: Decode, last: bool) -> str:
        before = decode(self._tokens[self._window : self._given])
        now = decode(self._tokens[self._window :])
        if now.endswith(UNFINISHED) and not last:
            return ""
        if len(now) > len(before):
            # Only a piece with text moves the window: a skipped special token is no context.
            self._window = self._given
        self._given = len(self._tokens)
        return now[len(before) :]
