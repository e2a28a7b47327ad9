"""What enters chosen layers while they run over a packed batch, and where heads of theirs look."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.scenes.compose import Object, Scene, patches_of
from model.train.pack import Packed

LAST_HEAD = slice(-1, None)


class Looks:
    """Of the forward pass that was made last. layers: whose inputs are kept."""

    def __init__(self, vlm: LlavaForConditionalGeneration, layers: Iterable[int]) -> None:
        self.vlm, self.text = vlm, vlm.model.language_model
        self.entering: dict[int, Tensor] = {}  # [B, N, hidden]; of text alone behind the drop layer
        for number in set(layers):
            self.text.layers[number - 1].register_forward_hook(functools.partial(self._keep, number))

    def _keep(self, number: int, _layer: nn.Module, _inputs: object, states: Tensor) -> None:
        self.entering[number] = states

    def scores(self, number: int, heads: slice, packed: Packed, at: Tensor) -> Tensor:
        """[n, heads, N]: before the softmax, from the places `at` [n] (flat indices into [B * N])."""
        layer, states = self.text.layers[number], self.entering[number]
        attention, length = layer.self_attn, states.shape[1]
        normed = layer.input_layernorm(states)
        rotary = self.text.rotary_emb(normed, position_ids=packed.positions)
        asks, keys = (
            projection(normed).unflatten(-1, (-1, attention.head_dim))[:, :, heads].transpose(1, 2).float()
            for projection in (attention.q_proj, attention.k_proj)
        )  # [B, heads, N, head_dim]
        asks, keys = apply_rotary_pos_emb(asks, keys, *rotary)
        row, column = at // length, at % length
        order = _numbers_within(row, len(states))
        table = column.new_zeros(len(states), int(order.max()) + 1).index_put((row, order), column)
        picked = asks.gather(2, table[:, None, :, None].expand(-1, asks.shape[1], -1, asks.shape[3]))
        looks: Tensor = (picked @ keys.mT)[row, :, order]
        return looks * attention.scaling + packed.mask[row, 0, column][:, None]


def _numbers_within(row: Tensor, rows: int) -> Tensor:
    """[n] row of each -> [n] how many of the same row come before it."""
    same = F.one_hot(row, rows)
    return (same.cumsum(0) - same)[torch.arange(len(row), device=row.device), row]


def behind_drop(packed: Packed, states: Tensor, at: Tensor) -> Tensor:
    """[n, hidden]: of `states`, which may be of text alone, those of text at the flat indices `at` [n]."""
    length, count = packed.ids.shape[1], packed.visual_at.shape[1]
    row, column = at // length, at % length
    if states.shape[1] < length:
        column = torch.where(column < packed.visual_at[0, 0], column, column - count)
    return states[row, column]


def columns_showing(packed: Packed, scenes: Sequence[Scene]) -> list[list[tuple[Object, Tensor]]]:
    """For each row the objects of its scene, each with the columns of the visible patches that show it."""
    return [
        [(thing, columns[torch.from_numpy(patches_of(thing))[shown]]) for thing in scene.objects]
        for scene, columns, shown in zip(
            scenes, packed.visual_at.cpu(), packed.visual_index.cpu(), strict=True
        )
    ]


def log_share(scores: Tensor, wanted: Tensor) -> Tensor:
    """scores, bool wanted [..., N] -> [...]: how much of the softmax falls on what is wanted."""
    return scores.log_softmax(-1).masked_fill(~wanted, -1e4).logsumexp(-1)
