"""What the memory gives, and what of it plain decoding reaches.

A decoded token reads every decoder weight and the head once. The roofline is that many bytes over the
measured read bandwidth: of passes between the rounds, since a shared machine gives now more, now less. The
buffer that is read is as large as the weights, so that neither finds more of itself in the caches.
Knows bytes and seconds, not engines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.checkpoint import layer_shapes
from model.decoder import DecoderShape
from model.native.library import load_library
from model.pages import Arena


def decode_bytes(shape: DecoderShape, layers: int, dtype: torch.dtype) -> int:
    """Of a base as our side holds it; the embedding gives a token one row and does not count."""
    of_layer = sum(math.prod(size) for size in layer_shapes(shape).values())
    return (layers * of_layer + shape.hidden * (shape.vocabulary + 1)) * dtype.itemsize


class Reading:
    """Passes over a buffer, one after each round of decoding; `bandwidth` is the mean of them all."""

    def __init__(
        self, buffer_bytes: int, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        words = max(1, buffer_bytes // 8)
        self._buffer = Arena(8 * words).take(words, torch.long).fill_(1)  # in the pages that the weights have
        self._threads, self._clock = threads, clock
        self._passes, self._seconds = 0, 0.0

    def once(self) -> float:
        """Seconds that it took."""
        started = self._clock()
        _read(self._buffer, self._threads)
        seconds = self._clock() - started
        self._passes += 1
        self._seconds += seconds
        return seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self._buffer.nbytes * self._passes / self._seconds


def _read(buffer: Tensor, threads: int) -> None:
    library = load_library()
    if library is None:
        buffer.sum()
    else:
        library.read(buffer.data_ptr(), buffer.numel(), threads)


def share(tokens_per_s: float, batch: int, weight_bytes: int, bandwidth: float) -> float:
    """Of the roofline; a batch reads the weights once for all its rows."""
    return tokens_per_s / batch * weight_bytes / bandwidth
