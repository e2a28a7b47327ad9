"""The known model families, by the `model_type` of a checkpoint's config.json."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from model.adapters.base import Adapter
from model.adapters.loading import check_decoder
from model.checkpoint import CONFIG_FILE, CheckpointError, read_json
from model.config import EngineConfig

__all__ = ["FAMILIES", "check_decoder", "load_adapter"]

# model_type -> module with a `load(directory, *, dtype, device, config)`.
FAMILIES = {
    "llava": "model.adapters.llava",
    "llava_next": "model.adapters.llava_next",
    "qwen2_5_vl": "model.adapters.qwen2_5_vl",
}


def load_adapter(
    directory: Path, *, dtype: torch.dtype, device: torch.device, config: EngineConfig
) -> Adapter:
    family = read_json(directory / CONFIG_FILE).get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{directory}: unknown model family {family!r}; known: {', '.join(sorted(FAMILIES))}"
        )
    adapter: Adapter = import_module(FAMILIES[family]).load(
        directory, dtype=dtype, device=device, config=config
    )
    return adapter
