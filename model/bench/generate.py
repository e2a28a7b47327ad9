"""The other side: transformers' `generate`, alone or on a left-padded batch, timed token by token.

Knows nothing of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.generation.streamers import BaseStreamer

from model.bench.measure import Arrivals, Limits
from model.bench.prompts import Prompt


class TokenClock(BaseStreamer):
    """Notes when each step's tokens are there; a row that has ended gets padding, which is no token."""

    def __init__(self, rows: int, eos: frozenset[int]) -> None:
        self.rows, self.eos = rows, eos
        self.ended = [False] * rows
        self.prompt_seen = False
        self.events: list[tuple[float, list[int]]] = []

    def put(self, value: Tensor) -> None:
        """value: the prompts first, [rows, tokens], then [rows] at every step."""
        at = time.perf_counter()
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.events.append((at, [int(not ended) for ended in self.ended]))
        for row, token in enumerate(value.view(-1).tolist()):
            self.ended[row] = self.ended[row] or token in self.eos

    def end(self) -> None:
        """Nothing is buffered."""


def joined(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of all prompts, tiles (dimension 1 of five) padded to the most that one has."""
    most = max(each["pixel_values"].shape[1] for each in tensors)
    names = tensors[0]
    out = {name: [each[name] for each in tensors] for name in names}
    if tensors[0]["pixel_values"].dim() == 5:
        out["pixel_values"] = [
            F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, most - pixels.shape[1])) for pixels in out["pixel_values"]
        ]
    return {name: torch.cat(parts) for name, parts in out.items()}


class GenerateSide:
    def __init__(self, base: Path, dtype: str, device: str) -> None:
        self.vlm = AutoModelForImageTextToText.from_pretrained(base, dtype=getattr(torch, dtype))
        self.vlm.eval().to(device)
        self.device = device
        eos = self.vlm.generation_config.eos_token_id
        self.eos = frozenset(eos if isinstance(eos, list) else [eos]) - {None}
        pad = self.vlm.generation_config.pad_token_id
        self.pad = pad if pad is not None else min(self.eos, default=0)

    def _padded(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Left padding: generation continues at the right end of every row."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | joined([prompt.tensors for prompt in prompts])
        inputs["pixel_values"] = inputs["pixel_values"].to(self.vlm.dtype)
        if "image_grid_thw" in inputs:  # 3-D positions are told from the kinds of tokens
            inputs["mm_token_type_ids"] = (ids == self.vlm.config.image_token_id).int()
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def run(self, prompts: Sequence[Prompt], limits: Limits) -> Arrivals:
        clock = TokenClock(len(prompts), self.eos if limits.natural else frozenset())
        inputs = self._padded(prompts)
        started_s = time.perf_counter()
        self.vlm.generate(
            **inputs,
            streamer=clock,
            do_sample=False,
            max_new_tokens=limits.max_tokens,
            min_new_tokens=None if limits.natural else limits.max_tokens,
            pad_token_id=self.pad,
        )
        return Arrivals(started_s, clock.events)
