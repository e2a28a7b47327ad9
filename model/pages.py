"""Memory for what is streamed again and again: aligned, and in huge pages where the system gives them.

A page of 4 KB ends the processor's own prefetching, and each costs a look-up, in a virtual machine two.
Knows bytes, not weights.
"""

from __future__ import annotations

import ctypes
import math
import sys

import torch
from torch import Tensor

HUGE_BYTES, LINE_BYTES = 2 << 20, 64
MADV_HUGEPAGE = 14  # Linux


class Arena:
    """So many bytes, given out piece by piece. Untouched pages take no memory."""

    def __init__(self, size_bytes: int) -> None:
        room = torch.empty(size_bytes + HUGE_BYTES, dtype=torch.uint8)
        start = -room.data_ptr() % HUGE_BYTES
        self._room, self._at = room[start : start + size_bytes], 0
        whole = size_bytes // HUGE_BYTES * HUGE_BYTES
        if sys.platform == "linux" and whole:  # advice: that it is not taken is no fault
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(self._room.data_ptr()), ctypes.c_size_t(whole), MADV_HUGEPAGE
            )

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        size_bytes = elements * dtype.itemsize
        piece = self._room[self._at : self._at + size_bytes]
        if piece.numel() < size_bytes:
            raise ValueError(f"the arena has {piece.numel()} bytes left, not {size_bytes}")
        self._at += in_lines(size_bytes)
        return piece.view(dtype)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch's, in huge pages on a CPU."""
    elements = math.prod(shape)
    if device.type != "cpu" or not elements:
        return torch.zeros(shape, dtype=dtype, device=device)
    return Arena(elements * dtype.itemsize).take(elements, dtype).view(shape).zero_()


def in_lines(size_bytes: int) -> int:
    """Rounded up, so that the next piece begins at a cache line."""
    return -(-size_bytes // LINE_BYTES) * LINE_BYTES
