"""The only owner of the device: vision, prefill of one prompt, and draft-verify rounds of all running rows.

Invariant: after a call the cache holds exactly the tokens that precede each row's pending one; of the twig's
layers the last few may be missing, and the row says which (`Row.unread`).
Knows slots and tokens, not requests; the rules of pruning and acceptance are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor

from model.adapters.base import Adapter
from model.generation import Prompt
from model.prefill import Prefill, Prefilled
from model.randomness import Draw
from model.sampling import Lottery
from model.scorers import Scorer
from model.speculative import DraftStop, accept, draft_stop, drafting_stops
from model.twig import Twig
from model.vision import Sight, Vision
from model.vlm import SplitVlm

# What the base chooses where its states have overflowed: no token, and equal to none.
NO_TOKEN = -1


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


@dataclass(frozen=True)
class RowOutcome:
    """tokens: accepted drafts, then the base's own; drafted: how many were proposed, and why not more.

    read: how many of the pending token and the drafts, from the first on, the twig has read.
    """

    tokens: list[int]
    drafted: int
    read: int
    draft_stop: DraftStop | None = None

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1

    @property
    def overflowed(self) -> bool:
        return self.tokens[-1] == NO_TOKEN


class Text(NamedTuple):
    """What a step reads of a slot: its new token (a vector may stand for it), and what the twig missed."""

    slot: int
    before: Sequence[int]
    token: int
    vector: Tensor | None

    @property
    def width(self) -> int:
        return len(self.before) + 1


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
        if len(self.states) == 1 or len(self.steps[0]) == 1:
            return stacked, []
        slots = [slot for step in self.steps for slot in step]
        return stacked, sorted(range(len(slots)), key=slots.__getitem__)


class Runner:
    def __init__(
        self,
        adapter: Adapter,
        twig: Twig | None,
        *,
        slots: int,
        max_model_len: int,
        draft_tokens: int,
        draft_threshold: float,
        scorer: Scorer,
        kernels: str,
        image_cache_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.draft_tokens, self.draft_threshold = draft_tokens, draft_threshold
        self.vlm = SplitVlm(
            adapter,
            twig,
            slots=slots,
            max_model_len=max_model_len,
            kernels=kernels,
            dtype=dtype,
            device=device,
        )
        self.cache, self.device = self.vlm.cache, device
        self._overflows = dtype == torch.float16
        self.vision = Vision(adapter, image_cache_bytes, self.cache.full.layers > 0)
        self._prefill = Prefill(self.vlm, self.vision, scorer)

    def tune(self, scorer: Scorer, draft_tokens: int, draft_threshold: float) -> None:
        """What the next requests are pruned by and drafted with."""
        self._prefill.scorer = scorer
        self.draft_tokens, self.draft_threshold = draft_tokens, draft_threshold

    @property
    def held_tokens(self) -> int:
        """Of all sequences together, in the layers that verify first."""
        return sum(self.cache.kept.lengths)

    @torch.inference_mode()
    def encode(self, prompt: Prompt) -> Sight:
        """Vision of all the prompt's pictures, or what is remembered of them."""
        return self.vision.look(prompt)

    @torch.inference_mode()
    def encode_together(self, prompts: Sequence[Prompt]) -> list[Sight]:
        """The same for several prompts in one pass of the tower; raises if any of them cannot be seen."""
        return self.vision.look_at_all(prompts)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, sight: Sight) -> Prefilled:
        return self._prefill(prompt, sight)

    @torch.inference_mode()
    def next_logits(self, prompt: Prompt, sight: Sight) -> Tensor:
        """float32 [vocabulary] after the prompt; the cache is as it was."""
        vlm, start = self.vlm, self.prefill(prompt, sight)
        slot = start.slot
        try:
            positions = [vlm.cache.full.lengths[slot] + prompt.shift]
            x = vlm.embed([start.pending], {0: start.vector})
            states = vlm.trunk(x, vlm.angles(positions), [slot], [1])
            return vlm.head(vlm.base(states, positions, [slot], [1])).float()[0]
        finally:
            self.cache.release(slot)

    @torch.inference_mode()
    def round(self, rows: Sequence[Row]) -> list[RowOutcome]:
        """One round over slots 0..n-1: draft, verify, accept, roll back."""
        drawn = any(row.draw is not None for row in rows)
        lottery = Lottery([row.draw for row in rows], self.device) if drawn else None
        # A position is not a cache length: see `Prompt.shift`.
        starts = [self.cache.full.lengths[slot] + row.shift for slot, row in enumerate(rows)]
        drafting = self._draft(rows, starts, lottery)
        choices = self._verify(drafting, starts, lottery)
        outcomes = []
        for slot, draft in enumerate(drafting.drafts):
            tokens = accept(draft, choices[slot])
            # Pending and accepted drafts are in the cache; the base's own token is the next pending one.
            self.cache.extend(slot, len(tokens))
            if self._overflows and NO_TOKEN in choices[slot]:
                self.cache.wipe_beyond(slot)
            stop = draft_stop(draft, rows[slot].budget, rows[slot].eos)
            outcomes.append(RowOutcome(tokens, len(draft), drafting.read[slot], stop))
        return outcomes

    def _draft(self, rows: Sequence[Row], starts: Sequence[int], lottery: Lottery | None) -> Drafting:
        """Trunk and twig one token at a time, with ever fewer rows. starts: the pending tokens' positions.

        The twig reads a token only to guess the next one. So it has not read a row's last draft, nor anything
        of a row that does not draft; a later round reads that together with its pending token. A sampled
        row's lottery wants the twig's guess after every token.
        """
        out = Drafting([[] for _ in rows], [0] * len(rows))
        drafting = {slot for slot, row in enumerate(rows) if row.budget}
        guessing = {slot for slot in range(len(rows)) if lottery is not None and lottery.guesses_at(slot)}
        texts = [
            Text(slot, row.unread if slot in drafting | guessing else (), row.pending, row.vector)
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
            texts = [Text(slot, (), token, None) for slot, token, _ in going]
            for slot, token, probability in going:
                out.drafts[slot].append(token)
                stops = drafting_stops(token, probability, self.draft_threshold, rows[slot].eos)
                if stops or len(out.drafts[slot]) == rows[slot].budget:
                    drafting.discard(slot)
        return out

    def _read(
        self, out: Drafting, texts: Sequence[Text], starts: Sequence[int], asked: Sequence[int]
    ) -> Tensor | None:
        """One step: the trunk over all texts, the twig over those asked -> the last row of each of these."""
        vlm, step = self.vlm, len(out.steps)
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
        tokens = [token for text in texts for token in (*text.before, text.token)]
        vectors = {
            end - 1: text.vector for end, text in zip(accumulate(t.width for t in texts), texts, strict=True)
        }
        return self.vlm.embed(tokens, vectors)

    def _rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return x if len(rows) == x.shape[0] else x[self.vlm.tensor(rows)]

    def _propose(
        self, x: Tensor, slots: Sequence[int], lottery: Lottery | None
    ) -> tuple[list[int], list[float]]:
        head = self.vlm.twig_head
        assert head is not None  # noqa: S101  only a row with a twig is asked
        return head.propose(x) if lottery is None else lottery.guess(head(x), slots)

    def _verify(self, drafting: Drafting, starts: Sequence[int], lottery: Lottery | None) -> list[list[int]]:
        """Middle and top once over the trunk's states -> the base's choice after each token of each row."""
        vlm, widths = self.vlm, [len(draft) + 1 for draft in drafting.drafts]
        positions = [starts[slot] + step for slot, width in enumerate(widths) for step in range(width)]
        states, order = drafting.by_row()
        states = states[vlm.tensor(order)] if order else states
        x = vlm.base(states, positions, range(len(widths)), widths)
        drawn = vlm.head.choose(x) if lottery is None else lottery.choose(vlm.head(x), widths)
        if self._overflows:
            sound = x.isfinite().all(-1).tolist()
            drawn = [token if good else NO_TOKEN for token, good in zip(drawn, sound, strict=True)]
        choices = iter(drawn)
        return [list(islice(choices, width)) for width in widths]
