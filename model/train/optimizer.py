"""What moves the embedded model's weights: Muon the matrices of its layers, AdamW all the rest.

Muon (Jordan et al. 2024) makes a matrix's step orthogonal, so that what few examples ask for is learned as
fast as what all of them do: of pictures of six objects three quarters of the nouns are named after 350 steps,
where AdamW names none after 250 (docs/log.md).

Invariant: one object with the few members of an optimizer that a training step and a checkpoint use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class LayersAndRest:
    """rate: of AdamW; Muon's steps are scaled to the same size. decay: of everything but vectors."""

    def __init__(self, network: nn.Module, *, rate: float, betas: tuple[float, float], decay: float) -> None:
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        matrices = {name: p for name, p in trained.items() if p.ndim == 2 and ".layers." in name}
        rest = [p for name, p in trained.items() if name not in matrices]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices.values(), rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, rate, betas=betas),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])
