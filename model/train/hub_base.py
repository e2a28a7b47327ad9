"""Any supported base, frozen, and what its trunk makes of conversations about pictures.

transformers' own model does the reading, so that a twig's layers can have gradients; the checkpoint's own
processor, chat template and positions, so that a twig sees what it will see in the engine.
Invariant: a base that transformers would complete with random weights is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText

from model.adapters import FAMILIES, check_decoder
from model.card import ImageSpec
from model.checkpoint import CONFIG_FILE, CheckpointError, read_json
from model.config import ImageFit
from model.pictures import pad_to_square, tokens_of
from model.train.conversations import Conversation, DataError
from model.train.dialogue import Dialogue, Speaker
from model.train.reading import FrozenBase, Reading, through
from model.words import Words


@dataclass(frozen=True)
class Example:
    """A conversation as tensors: pixels by the names that the tower takes, empty without a picture."""

    name: str
    dialogue: Dialogue
    pixels: dict[str, Tensor]


class HubBase:
    """directory: a base as the engine takes it. image_fit: "pad" as EngineConfig has it, for LLaVA-1.5."""

    def __init__(
        self, directory: Path, *, dtype: torch.dtype, device: torch.device, image_fit: ImageFit | None
    ) -> None:
        family = read_json(directory / CONFIG_FILE).get("model_type")
        if family not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise CheckpointError(f"{directory}: unknown model family {family!r}; known: {known}")
        if image_fit is not None and family != "llava":
            raise ValueError(f"image_fit is no option of {family} checkpoints")
        self.device, self.image_fit = device, image_fit
        self.vlm: Any = _loaded(directory, dtype).to(device).eval()
        self.vlm.requires_grad_(False)
        self.config = self.vlm.config
        check_decoder(self.config.text_config, directory)
        self.text = self.vlm.model.language_model
        self.words = Words(directory, self.config.image_token_id, whole=family != "qwen2_5_vl")
        self.speaker = Speaker(self.words, self._eos())

    def _eos(self) -> frozenset[int]:
        eos = self.vlm.generation_config.eos_token_id
        eos = self.config.text_config.eos_token_id if eos is None else eos
        return frozenset([eos] if isinstance(eos, int) else eos or [])

    def frozen(self, fork_layer: int, drop_layer: int) -> FrozenBase:
        return FrozenBase(self.vlm, fork_layer, drop_layer)

    def example(self, conversation: Conversation) -> Example:
        """Words and pixels, on the CPU: the part of the work that may run ahead."""
        pixels: dict[str, Tensor] = {}
        if conversation.picture is not None:
            picture = conversation.open_picture()
            if self.image_fit == "pad":
                picture = pad_to_square(picture, ImageSpec.pad_color)
            try:
                pixels = dict(self.words.processed([picture]))
            except ValueError as error:
                raise DataError(f"{conversation.name}: image {conversation.picture}: {error}") from error
        return Example(conversation.name, self.speaker.dialogue(conversation), pixels)

    @torch.no_grad()
    def read(self, examples: Sequence[Example], base: FrozenBase, max_length: int) -> Reading:
        """Padded behind; tokens past max_length are not there. Raises DataError where a picture is cut."""
        rows = [self._row(example, max_length) for example in examples]
        hidden = pad_sequence([row.embedded for row in rows], batch_first=True)
        visual = pad_sequence([row.visual for row in rows], batch_first=True)
        length = hidden.shape[1]
        positions = torch.stack([_padded(row.positions, length) for row in rows], dim=-2)
        rotary = self.text.rotary_emb(hidden, position_ids=positions)
        target_at, target, turn = [], [], []
        turns = 0
        for b, row in enumerate(rows):
            for first, end in row.answers:
                target_at.append(torch.arange(first - 1, end - 1) + b * length)
                target.append(row.ids[first:end])
                turn.append(torch.full((end - first,), turns))
                turns += 1
        hidden = through(base.trunk, hidden, {"attention_mask": None, "position_embeddings": rotary})
        at, said, number = (
            torch.cat(parts).to(self.device)
            if parts
            else torch.zeros(0, dtype=torch.long, device=self.device)
            for parts in (target_at, target, turn)
        )
        grid = tokens_of(self.config)[1] if self.config.model_type == "llava" else None
        return Reading(hidden, None, rotary, visual, at, said, number, grid)

    def _row(self, example: Example, max_length: int) -> _Row:
        placeholder = self.config.image_token_id
        features = self._features(example)
        ids: list[int] = []
        moved = []  # where each token of the dialogue stands in the expanded one
        for token in example.dialogue.ids:
            moved.append(len(ids))
            ids += [token] * (len(features) if token == placeholder else 1)
        moved.append(len(ids))
        if placeholder in ids[max_length:]:
            raise DataError(
                f"{example.name}: its picture ends behind the first {max_length} tokens: it takes "
                f"{len(features)}, raise the longest length"
            )
        kept = torch.tensor(ids[:max_length])
        visual = kept == placeholder
        embedded = self.text.embed_tokens(kept.to(self.device))
        if len(features):
            embedded[visual.to(self.device)] = features.to(embedded.dtype)
        answers = [(moved[first], min(moved[end], max_length)) for first, end in example.dialogue.answers]
        return _Row(
            kept, embedded, visual.to(self.device), self._positions(kept, visual, example.pixels),
            [(first, end) for first, end in answers if first < end],
        )  # fmt: skip

    def _features(self, example: Example) -> Tensor:
        if not example.pixels:
            return torch.zeros(0)
        tower = next(self.vlm.model.vision_tower.parameters() if hasattr(self.vlm.model, "vision_tower")
                     else self.vlm.model.visual.parameters())  # fmt: skip
        given = {
            name: value.to(self.device, tower.dtype if value.is_floating_point() else None)
            for name, value in example.pixels.items()
        }
        return torch.cat(list(self.vlm.get_image_features(**given, return_dict=True).pooler_output))

    def _positions(self, ids: Tensor, visual: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        """[N], or [3, N] where the family has three axes."""
        plain = torch.arange(len(ids), device=self.device)
        of_family = getattr(self.vlm.model, "get_rope_index", None)
        if of_family is None:
            return plain
        if not pixels:
            return plain.expand(3, -1)
        found, _ = of_family(ids[None], visual[None].int(), image_grid_thw=pixels["image_grid_thw"])
        return found[:, 0].to(self.device)


@dataclass(frozen=True)
class _Row:
    """One sequence. answers: [first, end) of what is left of each."""

    ids: Tensor
    embedded: Tensor
    visual: Tensor
    positions: Tensor
    answers: list[tuple[int, int]]


def _padded(positions: Tensor, length: int) -> Tensor:
    """Of padding nobody sees anything; any position will do."""
    return torch.nn.functional.pad(positions, (0, length - positions.shape[-1]))


def _loaded(directory: Path, dtype: torch.dtype) -> Any:
    try:
        vlm, report = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # whatever a broken file makes the loader raise, the caller gets one type
        raise CheckpointError(f"cannot load {directory}: {error}") from error
    if report["missing_keys"]:
        raise CheckpointError(f"{directory}: missing tensors: {', '.join(sorted(report['missing_keys']))}")
    return vlm
