"""A prompt into the cache: trunk and twig read all of it, the base what pruning leaves.

Invariant: after a prefill the cache holds exactly the tokens before the pending one, and nothing of the
sequence if it failed. The rules of pruning are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.generation import Prompt
from model.glance import Glance
from model.pruning import everything, survivors, top_scores
from model.scorers import Scorer
from model.vision import Prefix, Sight, Vision
from model.vlm import SplitVlm


@dataclass(frozen=True)
class Prefilled:
    """slot: where the sequence lives now. pending: the first token that no cache holds yet.

    vector: [1, hidden], what stands for the pending token where it is part of an image.
    """

    slot: int
    pending: int
    vector: Tensor | None
    kept_indices: list[int]
    token_scores: list[float] | None


class Prefill:
    def __init__(self, vlm: SplitVlm, vision: Vision, scorer: Scorer) -> None:
        self.vlm, self.vision, self.scorer = vlm, vision, scorer

    def __call__(self, prompt: Prompt, sight: Sight) -> Prefilled:
        """Takes a slot and fills it with all but the pending token.

        The pending token is the prompt's last, so that the first round drafts from the twig's view of the
        prompt and a new sequence rides the same verify as the running ones.
        """
        cache, ids = self.vlm.cache, prompt.token_ids
        slot = cache.take()
        try:
            x = self._embedded(slot, prompt, sight)
            vector = x[-1:].clone() if prompt.visual and prompt.visual[-1] == len(ids) - 1 else None
            kept_indices, scores = self._fill(slot, prompt, x, sight)
            pending = ids[-1]
            if prompt.resume_token_ids:
                self._replay(slot, [pending, *prompt.resume_token_ids[:-1]], vector, prompt.shift)
                pending, vector = prompt.resume_token_ids[-1], None
        except BaseException:
            cache.release(slot)
            raise
        return Prefilled(slot, pending, vector, kept_indices, scores)

    def _embedded(self, slot: int, prompt: Prompt, sight: Sight) -> Tensor:
        """[tokens behind the known prefix, hidden]; the prefix's own rows go into the cache as they are."""
        vlm = self.vlm
        if sight.prefix is not None:
            vlm.cache.full.put_rows(slot, sight.prefix.rows)
            return vlm.embed(prompt.token_ids[sight.prefix.tokens :], {})
        x = vlm.embed(prompt.token_ids, {})
        if sight.features is None:
            return x
        return x.index_copy(0, vlm.tensor(prompt.visual), sight.features.to(x.dtype))

    def _fill(
        self, slot: int, prompt: Prompt, x: Tensor, sight: Sight
    ) -> tuple[list[int], list[float] | None]:
        """The prompt into all groups but for its last token, which only trunk and twig read already."""
        length = len(prompt.token_ids)
        angles = self.vlm.prompt_angles(prompt.positions, length)
        x, attention = self._read(slot, prompt, x, angles[length - x.shape[0] :])
        if sight.prefix is not None:
            x = torch.cat((sight.prefix.states, x))
        elif sight.prefix_key is not None:
            self._keep(slot, sight.prefix_key, x[: prompt.visual[-1] + 1])
        scores: list[float] | None = None
        if attention is None:
            indices, stay = list(range(len(prompt.visual))), everything(length)
        else:
            scores = list(self.scorer(Glance(self.vlm, prompt, x, angles, attention)))
            indices = top_scores(scores, prompt.kept_tokens)
            stay = survivors(length, prompt.visual, indices)
        kept, text = stay.kept[:-1], stay.text[:-1]
        self._fill_base(slot, x, angles, kept, text)
        self.vlm.cache.set_lengths(slot, length - 1, len(kept), len(text))
        return indices, scores

    def _keep(self, slot: int, key: bytes, states: Tensor) -> None:
        rows = self.vlm.cache.full.rows(slot, states.shape[0])
        self.vision.keep(key, Prefix(states.clone(), rows))

    def _read(self, slot: int, prompt: Prompt, x: Tensor, cis: Tensor) -> tuple[Tensor, Tensor | None]:
        """Trunk and twig over the rest of the prompt -> the trunk's states, and if it is pruned the twig's
        attention of the last token [P]."""
        vlm = self.vlm
        x = vlm.trunk(x, cis, [slot], [x.shape[0]])
        if prompt.pruned:
            return x, vlm.twig.fill_scored(x, cis, slot)
        if prompt.speculate:
            vlm.twig.fill(x, cis, slot)
        return x, None

    def _fill_base(self, slot: int, x: Tensor, cis: Tensor, kept: list[int], text: list[int]) -> None:
        """x, cis: the trunk's states and the angles of the whole prompt."""
        vlm = self.vlm
        if not kept:
            return
        tokens = vlm.tensor(kept)
        x, kept_cis = x[tokens], cis[tokens]
        if not (vlm.top.depth and text):  # what a last layer gives out nobody reads
            vlm.middle.fill(x, kept_cis, slot)
            return
        x = vlm.middle(x, kept_cis, [slot], [len(kept)])
        row_of = {position: row for row, position in enumerate(kept)}
        rows = vlm.tensor([row_of[position] for position in text])
        vlm.top.fill(x[rows], cis[vlm.tensor(text)], slot)

    def _replay(self, slot: int, tokens: Sequence[int], vector: Tensor | None, shift: int) -> None:
        """Feeds tokens that an earlier run has chosen, after a prompt pruned as that run pruned it."""
        vlm, width = self.vlm, len(tokens)
        start = vlm.cache.full.lengths[slot] + shift
        positions = range(start, start + width)
        x, cis = vlm.embed(tokens, {0: vector}), vlm.angles(positions)
        x = vlm.trunk(x, cis, [slot], [width])
        vlm.twig.fill(x, cis, slot)
        vlm.base(x, positions, [slot], [width])
        vlm.cache.extend(slot, width)
