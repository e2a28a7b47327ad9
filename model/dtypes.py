"""Which number format an engine computes in, and where that would be slow.

Storing and multiplying are two things: our native kernels keep bf16 weights and compute in float32, so on a
CPU without bf16 instructions bf16 is right for the decoder and wrong for whatever torch multiplies.
"""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"


def resolve_dtype(name: str, device: torch.device, *, native: bool = False) -> torch.dtype:
    """The torch dtype of a name. native: the native kernels will decode.

    "auto" is bfloat16 where the device multiplies it natively or the kernels do it, else float32.
    """
    if name == AUTO:
        return torch.float32 if emulated(torch.bfloat16, device) and not native else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join([AUTO, *DTYPES])}, not {name!r}")
    return DTYPES[name]


def seeing_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What vision tower and projector compute in: torch runs them, so never in emulated bf16."""
    return torch.float32 if emulated(dtype, device) else dtype


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's products in this format are emulated: 5 to 100 times slower than float32 here."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
