"""Which number format an engine computes in."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; "auto" is bfloat16 where the device multiplies it natively, else float32.

    A processor without bf16 instructions emulates them: 5 times slower than float32 where we measured it.
    """
    if name == AUTO:
        return torch.bfloat16 if device.type != "cpu" or _cpu_has_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join([AUTO, *DTYPES])}, not {name!r}")
    return DTYPES[name]


def seeing_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What the vision tower computes in: it is small and bound by arithmetic, so never in emulated bf16."""
    emulated = dtype == torch.bfloat16 and device.type == "cpu" and not _cpu_has_bfloat16()
    return torch.float32 if emulated else dtype


def _cpu_has_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
