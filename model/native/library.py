"""The compiled kernels as typed calls: C structures, packed weights, and nothing of layers' meaning.

Invariant: every pointer handed over belongs to a tensor that is contiguous, on the CPU and alive.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from model.native.build import find_or_compile
from model.pages import Arena, in_lines

log = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float32)


class ShapeC(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("hidden", "intermediate", "heads", "kv_heads", "head_dim", "threads")),
        ("eps", c_float),
    )


class LayerC(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("qkv", "out", "gate_up", "down", "qkv_bias", "out_bias"))


class WorkC(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "cis", "slab")),
        *((name, c_int64) for name in ("layer_stride", "slot_stride", "head_stride")),
        *((name, POINTER(c_int32)) for name in ("slots", "starts", "widths")),
        ("scores", c_void_p),
        *((name, c_int32) for name in ("layers", "rows", "spans", "keys_only")),
    )


class DraftC(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("trunk", "twig", "trunk_slab", "twig_slab")),
        *((name, c_int64) for name in ("layer_stride", "slot_stride", "head_stride")),
        *((name, c_void_p) for name in ("embedding", "rope", "head", "scales")),
        ("threshold", c_double),
        *(
            (name, c_int32)
            for name in ("outputs", "head_bytes", "trunk_layers", "twig_layers", "rows", "most")
        ),
        *((name, POINTER(c_int32)) for name in ("slots", "lengths", "positions", "widths", "budgets")),
        *((name, POINTER(c_int32)) for name in ("eos_ends", "eos")),
        ("tokens", POINTER(c_int64)),
        ("vectors", POINTER(c_void_p)),
        ("drafts", POINTER(c_int64)),
        ("counts", POINTER(c_int32)),
        ("states", c_void_p),
        *((name, POINTER(c_int32)) for name in ("readers", "read")),
    )


SIGNATURES = {
    "twig_lanes": ([], c_int32),
    "twig_pack": ([c_void_p, c_int32, c_int32, c_int32, c_int32, c_void_p], None),
    "twig_layers": ([POINTER(ShapeC), POINTER(LayerC), POINTER(WorkC), c_int32], None),
    "twig_draft": ([POINTER(ShapeC), POINTER(DraftC), c_int32], None),
    "twig_head": (
        [c_void_p, c_void_p, *[c_int32] * 4, c_float, c_void_p, c_int32, c_void_p, c_void_p, c_void_p],
        None,
    ),
    "twig_read": ([c_void_p, c_int64, c_int32], c_uint64),
}


class Library:
    """lanes: floats of a vector; a panel is two of them."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (arguments, result) in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        self.layers, self.head, self.draft = library.twig_layers, library.twig_head, library.twig_draft
        self.read = library.twig_read
        self._pack = library.twig_pack
        self.lanes = int(library.twig_lanes())

    def packed_elements(self, inputs: int, outputs: int) -> int:
        return -(-outputs // (2 * self.lanes)) * 2 * self.lanes * inputs

    def packed_bytes(self, weight: Tensor) -> int:
        return in_lines(self.packed_elements(*weight.shape) * weight.element_size())

    def pack(self, weight: Tensor, arena: Arena) -> Tensor:
        """[inputs, outputs] -> the same in panels of 2 * lanes columns, filled up with zeros."""
        inputs, outputs = weight.shape
        weight = weight.contiguous()
        packed = arena.take(self.packed_elements(inputs, outputs), weight.dtype)
        threads = torch.get_num_threads()
        self._pack(weight.data_ptr(), inputs, outputs, weight.element_size(), threads, packed.data_ptr())
        return packed


def return_free_memory() -> None:
    """Hands what was freed back to the system, where the C library can.

    glibc keeps freed tensors below its mapping threshold, 32 MB at most, and new ones of another size do not
    always fit into them: without this a model is in memory nearly one and a half times after packing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def int32s(values: Sequence[int]) -> ctypes.Array[c_int32]:
    return (c_int32 * len(values))(*values)


@cache
def load_library() -> Library | None:
    """The kernels for this machine, compiled at the first call; None where that cannot be."""
    path = find_or_compile()
    try:
        return None if path is None else Library(path)
    except OSError as error:  # its OpenMP runtime is not there
        log.warning("no native kernels, decoding will be slower: %s", error)
        return None


def decodes(kernels: str, device: torch.device) -> bool:
    """kernels: as in EngineConfig. Compiles them where that is still to be done."""
    return kernels != "torch" and device.type == "cpu" and load_library() is not None
