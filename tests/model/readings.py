"""A base as twigs are trained on it: opened in float32, and its prompts as the engine expands them."""

from __future__ import annotations

from pathlib import Path

import torch

from model.train.hub_base import Example, HubBase


def hub(base: Path) -> HubBase:
    return HubBase(base, dtype=torch.float32, device=torch.device("cpu"), image_fit=None)


def expanded(base: HubBase, example: Example) -> list[int]:
    """Token ids with a placeholder for each visual token."""
    count = len(base._features(example))
    placeholder = base.config.image_token_id
    return [t for token in example.dialogue.ids for t in [token] * (count if token == placeholder else 1)]
