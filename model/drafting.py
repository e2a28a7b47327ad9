"""The draft phase of a round: what the twig guesses, and the trunk's states of all that was read for it.

Invariant: a row's drafts do not depend on the rows beside it, nor on whether kernels draft them in one call.
Knows slots and tokens, not requests; what is accepted is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from model.native.drafting import Draftee
from model.randomness import Draw
from model.sampling import Lottery
from model.speculative import drafting_stops
from model.vlm import SplitVlm


@dataclass(frozen=True)
class Row:
    """One running sequence in a round, in slot order. budget: drafts at most; vector: see Prefilled.

    draw: how its tokens are drawn, None where it is greedy. shift: see `generation.Prompt.shift`.
    unread: the tokens right before the pending one that the base has read and the twig has not.
    """

    pending: int
    vector: Tensor | None
    budget: int
    eos: frozenset[int]
    draw: Draw | None = None
    shift: int = 0
    unread: Sequence[int] = ()

    def tokens(self, *, read_by_twig: bool) -> tuple[int, ...]:
        """What the first step of a round reads."""
        return (*self.unread, self.pending) if read_by_twig else (self.pending,)


class Text(NamedTuple):
    """What a step reads of a slot: what the twig missed, then its new token (a vector may stand for it)."""

    slot: int
    tokens: Sequence[int]
    vector: Tensor | None

    @property
    def width(self) -> int:
        return len(self.tokens)


@dataclass
class Drafting:
    """What the draft phase leaves: each row's drafts, and the trunk's states of pending tokens and drafts.

    steps: the slots of each step; states: [slots of the step, hidden] of each.
    read: how many of its new tokens (pending, drafts) the twig has read, by slot.
    """

    drafts: list[list[int]]
    read: list[int]
    states: list[Tensor] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)

    def add(self, slots: list[int], states: Tensor, asked: Sequence[int]) -> None:
        self.steps.append(slots)
        self.states.append(states)
        for slot in asked:
            self.read[slot] = len(self.steps)

    def by_row(self) -> tuple[Tensor, list[int]]:
        """The states step after step, and the order that puts them row after row (none where they are)."""
        stacked = self.states[0] if len(self.states) == 1 else torch.cat(self.states)
        slots = [slot for step in self.steps for slot in step]
        order = sorted(range(len(slots)), key=slots.__getitem__)
        return stacked, [] if order == list(range(len(slots))) else order


class Drafter:
    def __init__(self, vlm: SplitVlm) -> None:
        self._vlm = vlm

    def __call__(
        self, rows: Sequence[Row], starts: Sequence[int], lottery: Lottery | None, threshold: float
    ) -> Drafting:
        """starts: the pending tokens' positions."""
        if lottery is None and self._vlm.drafter is not None:
            draftees = [
                Draftee(slot, row.tokens(read_by_twig=row.budget > 0), row.vector, start, row.budget, row.eos)
                for slot, (row, start) in enumerate(zip(rows, starts, strict=True))
            ]
            drafts, states, slots = self._vlm.drafter(draftees, threshold)
            return Drafting(drafts, [len(draft) for draft in drafts], [states], [slots])
        return self._step_by_step(rows, starts, lottery, threshold)

    def _step_by_step(
        self, rows: Sequence[Row], starts: Sequence[int], lottery: Lottery | None, threshold: float
    ) -> Drafting:
        """Trunk and twig one token at a time, with ever fewer rows.

        The twig reads a token only to guess the next one. So it has not read a row's last draft, nor anything
        of a row that does not draft; a later round reads that together with its pending token. A sampled
        row's lottery wants the twig's guess after every token.
        """
        out = Drafting([[] for _ in rows], [0] * len(rows))
        drafting = {slot for slot, row in enumerate(rows) if row.budget}
        guessing = {slot for slot in range(len(rows)) if lottery is not None and lottery.guesses_at(slot)}
        texts = [
            Text(slot, row.tokens(read_by_twig=slot in drafting | guessing), row.vector)
            for slot, row in enumerate(rows)
        ]
        while texts:
            asked = [text.slot for text in texts if text.slot in drafting or text.slot in guessing]
            guesses = self._read(out, texts, starts, asked)
            if guesses is None:
                break
            proposals = self._propose(guesses, asked, lottery)
            # The guess of a row that drafts no more is for the lottery alone.
            going = [proposal for proposal in zip(asked, *proposals, strict=True) if proposal[0] in drafting]
            texts = [Text(slot, (token,), None) for slot, token, _ in going]
            for slot, token, probability in going:
                out.drafts[slot].append(token)
                stops = drafting_stops(token, probability, threshold, rows[slot].eos)
                if stops or len(out.drafts[slot]) == rows[slot].budget:
                    drafting.discard(slot)
        return out

    def _read(
        self, out: Drafting, texts: Sequence[Text], starts: Sequence[int], asked: Sequence[int]
    ) -> Tensor | None:
        """One step: the trunk over all texts, the twig over those asked -> the last row of each of these."""
        vlm, step = self._vlm, len(out.steps)
        slots, widths = [text.slot for text in texts], [text.width for text in texts]
        # A text ends at this step's token; what comes before that the trunk has read in earlier rounds.
        offsets = [step + 1 - width for width in widths]
        positions = [
            starts[slot] + offset + i
            for slot, width, offset in zip(slots, widths, offsets, strict=True)
            for i in range(width)
        ]
        x, cis = self._embed(texts), vlm.angles(positions)
        x = vlm.trunk(x, cis, slots, widths, offsets)
        ends = [end - 1 for end in accumulate(widths)]
        out.add(slots, self._rows(x, ends), asked)
        if not asked:
            return None
        if len(asked) < len(slots):
            chosen = set(asked)
            rows = [
                end - i
                for slot, width, end in zip(slots, widths, ends, strict=True)
                if slot in chosen
                for i in reversed(range(width))
            ]
            widths = [text.width for text in texts if text.slot in chosen]
            offsets = [step + 1 - width for width in widths]
            x, cis = self._rows(x, rows), self._rows(cis, rows)
            ends = [end - 1 for end in accumulate(widths)]
        return self._rows(vlm.twig(x, cis, asked, widths, offsets), ends)

    def _embed(self, texts: Sequence[Text]) -> Tensor:
        tokens = [token for text in texts for token in text.tokens]
        vectors = {
            end - 1: text.vector for end, text in zip(accumulate(t.width for t in texts), texts, strict=True)
        }
        return self._vlm.embed(tokens, vectors)

    def _rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return x if len(rows) == x.shape[0] else x[self._vlm.tensor(rows)]

    def _propose(
        self, x: Tensor, slots: Sequence[int], lottery: Lottery | None
    ) -> tuple[list[int], list[float]]:
        head = self._vlm.twig_head
        assert head is not None  # noqa: S101  only a row with a twig is asked
        return head.propose(x) if lottery is None else lottery.guess(head(x), slots)
