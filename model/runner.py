"""The only owner of the device: vision, prefill of one prompt, and draft-verify rounds of all running rows.

Invariant: after a call the cache holds exactly the tokens that precede each row's pending one; of the twig's
layers the last few may be missing, and the row says which (`Row.unread`).
Knows slots and tokens, not requests; the rules of pruning and acceptance are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from model.adapters.base import Adapter
from model.drafting import Drafter, Drafting, Row
from model.generation import Prompt
from model.prefill import Prefill, Prefilled
from model.sampling import Lottery
from model.scorers import Scorer
from model.speculative import DraftStop, accept, draft_stop
from model.twig import Twig
from model.vision import Sight, Vision
from model.vlm import SplitVlm

# What the base chooses where its states have overflowed: no token, and equal to none.
NO_TOKEN = -1


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
        batch_invariant: bool,
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
        keeps_prefixes = self.cache.full.layers > 0
        self.vision = Vision(adapter, image_cache_bytes, keeps_prefixes, together=not batch_invariant)
        self._prefill, self._draft = Prefill(self.vlm, self.vision, scorer), Drafter(self.vlm)

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
        """The same for several prompts at once; raises if any of them cannot be seen."""
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
        drafting = self._draft(rows, starts, lottery, self.draft_threshold)
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
