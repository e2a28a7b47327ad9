"""Where an engine computes, told apart from what is not here before any weight is read."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def best_device() -> torch.device:
    """A GPU where torch sees one."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def device_of(name: str) -> torch.device:
    """Raises ValueError, in one line, for what torch does not know or does not see."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none: cpu, or cuda where there is a GPU") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: torch sees no such GPU (`twigserve doctor` tells more)")
    return device
