"""Packs one scene's visual tokens and several questions about it into one training sequence.

Layout: `<s>USER: ` + visual tokens, then each turn, which sees the shared beginning and itself alone and
starts at the position where a lone turn would. So the picture is paid for once for all its questions, and
every turn is exactly the prompt of inference. Visual tokens may be a random subset at their own positions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from model.scenes.language import Turn

PAD_SEGMENT = -1


@dataclass(frozen=True)
class Packed:
    """One batch. Text stands at `text_at`, visual tokens at `visual_at` (flat indices into [B * N])."""

    ids: torch.Tensor  # [B, N] token ids, 0 at visual places
    positions: torch.Tensor  # [B, N]
    mask: torch.Tensor  # [B, 1, N, N] additive
    visual_at: torch.Tensor  # [B, V] indices into N
    visual_index: torch.Tensor  # [B, V] index of the visual token, 0..M-1
    target_at: torch.Tensor  # [A] flat indices whose next token is an answer token
    target: torch.Tensor  # [A] that next token
    turn: torch.Tensor  # [A] ascending number of the turn, over the batch, that it answers

    def to(self, device: torch.device) -> Packed:
        moved = {part.name: getattr(self, part.name).to(device) for part in dataclasses.fields(self)}
        return Packed(**moved)

    @property
    def starts(self) -> torch.Tensor:
        """bool [A]: the first token of each answer."""
        return torch.diff(self.turn, prepend=self.turn[:1] - 1) != 0

    def says(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool [B * N]: where the text is one of `tokens`, of neighbours the last."""
        says = torch.isin(self.ids, tokens).flatten()
        says[:-1] &= ~says[1:]
        return says

    def named(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool [B * N]: as `says`, in questions alone."""
        answered = torch.zeros(self.ids.numel(), dtype=torch.bool, device=self.ids.device)
        answered[self.target_at + 1] = True
        return self.says(tokens) & ~answered

    def asked(self, asked: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs: where a question says one of `asked` (flat index, of neighbours the last), and which of A is
        the first token of its answer or one of `told`."""
        places = torch.nonzero(self.named(asked)).flatten()
        turn = self.turn[torch.searchsorted(self.target_at, places)]
        wanted = self.starts | torch.isin(self.target, told)
        which, answer = torch.nonzero((turn[:, None] == self.turn) & wanted, as_tuple=True)
        return places[which], answer


class Packer:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self.head: list[int] = tokenizer.encode("USER: ")
        self.eos: int = tokenizer.eos_token_id

    def _turn(self, turn: Turn) -> tuple[list[int], list[int]]:
        ask = self.tokenizer.encode(f"\n{turn.prompt} ASSISTANT:", add_special_tokens=False)
        answer = self.tokenizer.encode(f" {turn.answer}", add_special_tokens=False)
        return ask, [*answer, self.eos]

    def pack(self, scenes: list[list[Turn]], visual: list[np.ndarray]) -> Packed:
        """`visual[b]`: ascending indices of the visual tokens shown for scene b; the same number for each."""
        rows = [self._row(turns, kept) for turns, kept in zip(scenes, visual, strict=True)]
        length = max(len(row[0]) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        positions, segments = torch.zeros_like(ids), torch.full_like(ids, PAD_SEGMENT)
        target_at, target, turn = [], [], []
        for b, (row_ids, row_positions, row_segments, answers) in enumerate(rows):
            ids[b, : len(row_ids)] = torch.tensor(row_ids)
            positions[b, : len(row_ids)] = torch.tensor(row_positions)
            segments[b, : len(row_ids)] = torch.tensor(row_segments)
            target_at += [b * length + at - 1 for at in answers]
            target += [row_ids[at] for at in answers]
            turn += [(b, row_segments[at]) for at in answers]
        start = len(self.head)
        visual_at = torch.arange(start, start + len(visual[0])).expand(len(rows), -1)
        return Packed(ids, positions, _mask(segments), visual_at, torch.as_tensor(np.stack(visual)),
                      torch.tensor(target_at), torch.tensor(target), _numbered(turn))  # fmt: skip

    def _row(self, turns: list[Turn], kept: np.ndarray) -> tuple[list[int], list[int], list[int], list[int]]:
        start = len(self.head)
        ids = [*self.head, *([0] * len(kept))]
        positions = [*range(start), *(start + int(i) for i in kept)]
        segments = [0] * len(ids)
        answers: list[int] = []
        for number, turn in enumerate(turns, start=1):
            ask, answer = self._turn(turn)
            first = start + self.image_tokens
            answers += range(len(ids) + len(ask), len(ids) + len(ask) + len(answer))
            ids += ask + answer
            positions += range(first, first + len(ask) + len(answer))
            segments += [number] * (len(ask) + len(answer))
        return ids, positions, segments, answers


def _numbered(turns: list[tuple[int, int]]) -> torch.Tensor:
    numbers = {turn: number for number, turn in enumerate(dict.fromkeys(turns))}
    return torch.tensor([numbers[turn] for turn in turns])


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """Causal, and each turn blind to the others; padding sees itself alone, so that no row is empty."""
    query, key = segments[:, :, None], segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((key == 0) | (key == query)) | torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]
