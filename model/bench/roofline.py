"""What the memory gives, and what of it plain decoding reaches.

A decoded token reads every decoder weight and the head once. The roofline is that many bytes over the
measured read bandwidth. The buffer that is read is as large as the weights, so that a model which fits into a
cache is held to the cache.
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

PASSES = 7


def decode_bytes(shape: DecoderShape, layers: int, dtype: torch.dtype) -> int:
    """Of a base as our side holds it; the embedding gives a token one row and does not count."""
    of_layer = sum(math.prod(size) for size in layer_shapes(shape).values())
    return (layers * of_layer + shape.hidden * (shape.vocabulary + 1)) * dtype.itemsize


def read_bandwidth(buffer_bytes: int, threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second, the best of several passes."""
    words = max(1, buffer_bytes // 8)
    buffer = Arena(8 * words).take(words, torch.long).fill_(1)  # in the pages that the weights have
    seconds = []
    for _ in range(PASSES):
        started = clock()
        _read(buffer, threads)
        seconds.append(clock() - started)
    return buffer.nbytes / min(seconds)


def _read(buffer: Tensor, threads: int) -> None:
    library = load_library()
    if library is None:
        buffer.sum()
    else:
        library.read(buffer.data_ptr(), buffer.numel(), threads)


def share(tokens_per_s: float, batch: int, weight_bytes: int, bandwidth: float) -> float:
    """Of the roofline; a batch reads the weights once for all its rows."""
    return tokens_per_s / batch * weight_bytes / bandwidth
