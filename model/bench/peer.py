"""In which number format the other side is fastest on this machine: nobody is compared with a straw man.

The decision is timed, not looked up: what a product of the decoder costs in each format, as often as a prompt
and an answer need it. Knows sizes and seconds, neither engines nor checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.decoder import DecoderShape

# A prompt is as many rows at once, an answer as many rows one by one.
PROMPT_ROWS, ANSWER_TOKENS = 256, 64
CANDIDATES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Work:
    """The product that is timed: [rows, inputs] x [inputs, outputs]."""

    inputs: int
    outputs: int

    @classmethod
    def of(cls, shape: DecoderShape) -> Work:
        return cls(shape.hidden, shape.intermediate)


def fastest_dtype(work: Work, asked: str, device: str, clock: Callable[[], float] = time.perf_counter) -> str:
    """asked: what our side computes in; only bfloat16 is ever replaced, on a CPU that emulates it."""
    if device != "cpu" or asked != "bfloat16":
        return asked
    return min(CANDIDATES, key=lambda name: _seconds(work, getattr(torch, name), clock))


@torch.inference_mode()
def _seconds(work: Work, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    weight = torch.ones(work.outputs, work.inputs, dtype=dtype)
    return sum(
        times * _once(torch.ones(rows, work.inputs, dtype=dtype), weight, clock)
        for rows, times in ((PROMPT_ROWS, 1), (1, ANSWER_TOKENS))
    )


def _once(x: torch.Tensor, weight: torch.Tensor, clock: Callable[[], float]) -> float:
    seconds = []
    for _ in range(3):
        started = clock()
        F.linear(x, weight)
        seconds.append(clock() - started)
    return min(seconds)
