"""The only owner of the device: prefill of one prompt, and one draft-verify round of all running rows.

Trunk = base layers 0..K-1, middle = K..F-1, top = F..L-1; without a twig all layers are middle.
Invariant: after a call the cache holds exactly the tokens that precede each row's pending one.
Knows slots and tokens, not requests; the rules of pruning and acceptance are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from model.adapters.base import Adapter
from model.cache import Cache, LayerGroup, Window
from model.decoder import DecoderLayer, run_layers
from model.generation import Prompt
from model.pruning import Selector, everything, survivors, top_scores
from model.randomness import Draw
from model.sampling import Lottery
from model.speculative import DraftStop, accept, draft_stop, drafting_stops
from model.twig import Twig

Layers = list[DecoderLayer]


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


@dataclass(frozen=True)
class Row:
    """One running sequence in a round, in slot order. budget: drafts at most; vector: see Prefilled.

    draw: how its tokens are drawn, None where it is greedy. shift: see `generation.Prompt.shift`.
    """

    pending: int
    vector: Tensor | None
    budget: int
    eos: frozenset[int]
    draw: Draw | None = None
    shift: int = 0


@dataclass(frozen=True)
class RowOutcome:
    """tokens: accepted drafts, then the base's own; drafted: how many were proposed, and why not more."""

    tokens: list[int]
    drafted: int
    draft_stop: DraftStop | None = None

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1


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
        select: Selector = top_scores,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layers = len(adapter.layers)
        fork, drop = (twig.config.fork_layer, twig.config.drop_layer) if twig else (0, layers)
        self.adapter, self.twig, self.device = adapter, twig, device
        self.select = select
        self.draft_tokens, self.draft_threshold = draft_tokens, draft_threshold
        self.trunk, self.middle = adapter.layers[:fork], adapter.layers[fork:drop]
        self.top = adapter.layers[drop:]
        self.twig_layers = twig.layers if twig else []
        self.rope = adapter.rope(max_model_len)
        shape = adapter.shape

        def group(depth: int) -> LayerGroup:
            return LayerGroup(depth, slots, shape.kv_heads, shape.head_dim, dtype, device)

        full = group(len(self.trunk) + len(self.twig_layers))
        self.cache = Cache(full, group(len(self.middle)), group(len(self.top)))

    @torch.inference_mode()
    def encode(self, prompt: Prompt) -> Tensor | None:
        """Visual features [M, hidden] of all the prompt's images, None without images."""
        if not prompt.visual:
            return None
        pixels = prompt.pixels or self.adapter.prepare_images(prompt.images)
        if not torch.isfinite(pixels.values).all():
            # They would stay in the cache, and a masked NaN still is one to the next owner of the slot.
            raise ValueError("the pixel values are not all finite")
        features = self.adapter.encode_images(pixels)
        if features.shape[0] != len(prompt.visual):
            raise RuntimeError(
                f"the tower gave {features.shape[0]} features for {len(prompt.visual)} positions"
            )
        return features

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, features: Tensor | None) -> Prefilled:
        """Takes a slot and fills it with all but the pending token; nothing stays behind if it fails.

        The pending token is the prompt's last, so that the first round drafts from the twig's view of the
        prompt and a new sequence rides the same verify as the running ones.
        """
        slot = self.cache.take()
        try:
            ids = prompt.token_ids
            x = self.adapter.embed(self._tensor(ids))  # [P, hidden]
            if features is not None:
                x = x.index_copy(0, self._tensor(prompt.visual), features.to(x.dtype))
            vector = x[-1:].clone() if prompt.visual and prompt.visual[-1] == len(ids) - 1 else None
            kept_indices, scores = self._fill(slot, prompt, x)
            pending = ids[-1]
            if prompt.resume_token_ids:
                self._replay(slot, [pending, *prompt.resume_token_ids[:-1]], vector, prompt.shift)
                pending, vector = prompt.resume_token_ids[-1], None
        except BaseException:
            self.cache.release(slot)
            raise
        return Prefilled(slot, pending, vector, kept_indices, scores)

    def _fill(self, slot: int, prompt: Prompt, x: Tensor) -> tuple[list[int], list[float] | None]:
        """The prompt into all groups but for its last token, which only the twig reads already."""
        length = len(prompt.token_ids)
        angles = self._prompt_angles(prompt)
        x, scores = self._read_prompt(slot, prompt, x, angles)
        if scores is None:
            indices, stay = list(range(len(prompt.visual))), everything(length)
        else:
            indices = self.select(scores, prompt.kept_tokens)
            stay = survivors(length, prompt.visual, indices)
        kept, text = stay.kept[:-1], stay.text[:-1]
        tokens = self._tensor(kept)
        x = self._fill_group(self.middle, x[tokens], angles[tokens], self.cache.kept, slot)
        row_of = {position: row for row, position in enumerate(kept)}
        rows = self._tensor([row_of[position] for position in text])
        self._fill_group(self.top, x[rows], angles[self._tensor(text)], self.cache.text, slot)
        self.cache.set_lengths(slot, length - 1, len(kept), len(text))
        return indices, scores

    def _read_prompt(
        self, slot: int, prompt: Prompt, x: Tensor, cis: Tensor
    ) -> tuple[Tensor, list[float] | None]:
        """Trunk and twig over the whole prompt -> the trunk's states, and the scores if it is pruned."""
        window = self.cache.full.window([slot], [x.shape[0]])
        x = run_layers(self.trunk, x, cis, window)
        if not (prompt.speculate or prompt.pruned):
            return x, None
        fork = len(self.trunk)
        *lower, last = self.twig_layers
        y = run_layers(lower, x, cis, window, fork)
        last_layer = fork + len(lower)
        last(y, cis, window, last_layer)
        if not prompt.pruned:
            return x, None
        attention = last.attention_of_last(y, cis, window, last_layer)
        scores: list[float] = attention[self._tensor(prompt.visual)].tolist()
        return x, scores

    def _fill_group(self, layers: Layers, x: Tensor, angles: Tensor, group: LayerGroup, slot: int) -> Tensor:
        if not layers or not x.shape[0]:
            return x
        return run_layers(layers, x, angles, group.window([slot], [x.shape[0]]))

    def _replay(self, slot: int, tokens: Sequence[int], vector: Tensor | None, shift: int) -> None:
        """Feeds tokens that an earlier run has chosen, after a prompt pruned as that run pruned it."""
        start = self.cache.full.lengths[slot] + shift
        positions = range(start, start + len(tokens))
        x, cis = self._embed(tokens, [vector]), self._angles(positions)
        window = self.cache.full.window([slot], [len(tokens)])
        x = run_layers(self.trunk, x, cis, window)
        run_layers(self.twig_layers, x, cis, window, len(self.trunk))
        self._base(x, positions, [slot], [len(tokens)])
        self.cache.extend(slot, len(tokens))

    @torch.inference_mode()
    def next_logits(self, prompt: Prompt, features: Tensor | None) -> Tensor:
        """float32 [vocabulary] after the prompt; the cache is as it was."""
        start = self.prefill(prompt, features)
        try:
            slot, positions = start.slot, [length + prompt.shift for length in self.cache.full.lengths]
            states, _, _ = self._trunk_step([start.pending], [start.vector], [slot], positions, 0)
            x = self._base(states, [positions[slot]], [slot], [1])
            return self.adapter.head(x).float()[0]
        finally:
            self.cache.release(start.slot)

    def _embed(self, tokens: Sequence[int], vectors: Sequence[Tensor | None] = ()) -> Tensor:
        """[n, hidden]; where a vector is given it stands for the token."""
        x = self.adapter.embed(self._tensor(tokens))
        for row, vector in enumerate(vectors):
            if vector is not None:
                x[row : row + 1] = vector
        return x

    @torch.inference_mode()
    def round(self, rows: Sequence[Row]) -> list[RowOutcome]:
        """One round over slots 0..n-1: draft, verify, accept, roll back."""
        drawn = any(row.draw is not None for row in rows)
        lottery = Lottery([row.draw for row in rows], self.device) if drawn else None
        # A position is not a cache length: see `Prompt.shift`.
        starts = [self.cache.full.lengths[slot] + row.shift for slot, row in enumerate(rows)]
        drafts, states = self._draft(rows, starts, lottery)
        choices = self._verify(drafts, starts, states, lottery)
        outcomes = []
        for slot, draft in enumerate(drafts):
            tokens = accept(draft, choices[slot])
            # Pending and accepted drafts are in the cache; the base's own token is the next pending one.
            self.cache.extend(slot, len(tokens))
            stop = draft_stop(draft, rows[slot].budget, rows[slot].eos)
            outcomes.append(RowOutcome(tokens, len(draft), stop))
        return outcomes

    def _draft(
        self, rows: Sequence[Row], starts: Sequence[int], lottery: Lottery | None
    ) -> tuple[list[list[int]], Tensor]:
        """Trunk and twig one token at a time, with ever fewer rows. starts: the pending tokens' positions.

        Returns each row's drafts, and the trunk's states of pending tokens and drafts, row after row.
        The last draft runs through the twig too: if it is accepted the next round attends to it, and a
        sampled row's lottery wants the twig's guess after it. A row without budget that is not sampled
        leaves no twig cache: it never drafts, or this is its last round.
        """
        drafts: list[list[int]] = [[] for _ in rows]
        tokens, vectors = [row.pending for row in rows], [row.vector for row in rows]
        slots, drafting = list(range(len(rows))), {slot for slot, row in enumerate(rows) if row.budget}
        guessing = {slot for slot in slots if lottery is not None and lottery.guesses_at(slot)}
        speculating = bool(drafting or guessing)
        states: list[Tensor] = []
        steps: list[list[int]] = []
        while slots:
            x, window, cis = self._trunk_step(tokens, vectors, slots, starts, len(steps))
            states.append(x)
            steps.append(slots)
            if speculating:
                x = run_layers(self.twig_layers, x, cis, window, len(self.trunk))
            asked = [index for index, slot in enumerate(slots) if slot in drafting or slot in guessing]
            if self.twig is None or not asked:
                break
            if len(asked) < len(slots):
                x, slots = x[self._tensor(asked)], [slots[index] for index in asked]
            proposals = self.twig.propose(x) if lottery is None else lottery.guess(self.twig.head(x), slots)
            # The guess of a row that drafts no more is for the lottery alone.
            going = [proposal for proposal in zip(slots, *proposals, strict=True) if proposal[0] in drafting]
            slots, tokens, vectors = [slot for slot, *_ in going], [token for _, token, _ in going], []
            for slot, token, probability in going:
                drafts[slot].append(token)
                stops = drafting_stops(token, probability, self.draft_threshold, rows[slot].eos)
                if stops or len(drafts[slot]) == rows[slot].budget:
                    drafting.discard(slot)
        return drafts, self._by_row(states, steps)

    def _trunk_step(
        self,
        tokens: list[int],
        vectors: list[Tensor | None],
        slots: list[int],
        starts: Sequence[int],
        step: int,
    ) -> tuple[Tensor, Window | None, Tensor]:
        full = self.cache.full
        x, cis = self._embed(tokens, vectors), self._angles([starts[slot] + step for slot in slots])
        if not full.layers:
            return x, None, cis
        window = full.window(slots, [1] * len(slots), offset=step)
        return run_layers(self.trunk, x, cis, window), window, cis

    def _by_row(self, states: list[Tensor], steps: list[list[int]]) -> Tensor:
        """States of step after step, the rows of each in `steps` -> row after row, each in order of steps."""
        if len(states) == 1:
            return states[0]
        stacked = torch.cat(states)
        if len(steps[0]) == 1:
            return stacked
        order = [slot for step in steps for slot in step]
        return stacked[self._tensor(sorted(range(len(order)), key=order.__getitem__))]

    def _verify(
        self, drafts: list[list[int]], starts: Sequence[int], states: Tensor, lottery: Lottery | None
    ) -> list[list[int]]:
        """Middle and top once over the trunk's states -> the base's choice after each token of each row."""
        widths = [len(draft) + 1 for draft in drafts]
        positions = [starts[slot] + step for slot, width in enumerate(widths) for step in range(width)]
        x = self._base(states, positions, range(len(drafts)), widths)
        logits = self.adapter.head(x)
        choices = iter(logits.argmax(-1).tolist() if lottery is None else lottery.choose(logits, widths))
        return [list(islice(choices, width)) for width in widths]

    def _base(
        self, x: Tensor, positions: Sequence[int], slots: Sequence[int], widths: Sequence[int]
    ) -> Tensor:
        """Middle and top layers over new tokens of the slots."""
        cis = self._angles(positions)
        for layers, group in ((self.middle, self.cache.kept), (self.top, self.cache.text)):
            if layers:
                x = run_layers(layers, x, cis, group.window(slots, widths))
        return x

    def _prompt_angles(self, prompt: Prompt) -> Tensor:
        """[P, 1, head_dim / 2], complex."""
        if prompt.positions is None:
            return self.rope[: len(prompt.token_ids)]
        pairs = prompt.positions.pairs.to(self.device)
        return self.rope.squeeze(1).gather(0, pairs).unsqueeze(1)

    def _angles(self, positions: Sequence[int]) -> Tensor:
        return self.rope[self._tensor(positions)]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
