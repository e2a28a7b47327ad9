"""A base read from a Hugging Face directory: transformers' modules around a decoder that is ours.

transformers builds and fills everything but the decoder's layers (its own renaming rules know every key
layout that it has used); those are read shard by shard into `DecoderLayer`, one at a time, so that loading
peaks at little more than what is kept.
Invariant: a base that transformers would complete with random weights is refused, naming the tensors.
Knows nothing of pictures, prompts or families' towers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from model.checkpoint import CheckpointError, check_shapes, layer_shapes
from model.decoder import DecoderLayer, DecoderShape, Head
from model.tensor_files import Part, TensorFiles

# A decoder layer's tensors as transformers has named them over time: LLaVA on the Hub, any family as it is
# written now, Qwen2.5-VL on the Hub.
LAYER_NAME = re.compile(r"(?:language_model\.model|model\.language_model|model)\.layers\.(\d+)\.(.+)")
LAYERS_NOW = "model.language_model.layers."
# Their angles depend on the length seen so far, which a table cannot say.
MOVING_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class Base:
    """vlm: transformers' model without decoder layers and head. rotary: its rotary embedding."""

    vlm: Any
    config: Any
    shape: DecoderShape
    embedding: Tensor
    rotary: Any
    layers: list[DecoderLayer]
    head: Head
    eos_token_ids: frozenset[int]


def read_config(kind: type[PretrainedConfig], directory: Path) -> Any:
    try:
        return kind.from_pretrained(directory)
    except Exception as error:  # whatever a broken file makes the reader raise, the caller gets one type
        raise CheckpointError(f"cannot read the configuration of {directory}: {error}") from error


def check_decoder(text: Any, directory: Path) -> None:
    """Refuses what `DecoderLayer` does not compute."""
    if text.hidden_act != "silu" or getattr(text, "mlp_bias", False):
        raise CheckpointError(f"{directory}: only a silu MLP without bias is supported")
    if getattr(text, "sliding_window", None) is not None:
        raise CheckpointError(f"{directory}: sliding-window attention is not supported")
    if text.rope_parameters["rope_type"] in MOVING_ROPE:
        raise CheckpointError(
            f"{directory}: rope type {text.rope_parameters['rope_type']!r} is not supported"
        )


def check_features(config: Any, directory: Path) -> None:
    """Refuses hidden states that the tower does not have."""
    layers, chosen = config.vision_config.num_hidden_layers, config.vision_feature_layer
    for layer in [chosen] if isinstance(chosen, int) else chosen:
        if not -layers - 1 <= layer <= layers:
            raise CheckpointError(
                f"{directory}: vision_feature_layer {layer} does not lie in {-layers - 1}..{layers}, "
                f"the hidden states of a tower of {layers} layers"
            )


def load_base(
    kind: Any, config: Any, shape: DecoderShape, directory: Path, dtype: torch.dtype, device: torch.device
) -> Base:
    """kind: transformers' ...ForConditionalGeneration; config: the directory's, of that family."""
    files = TensorFiles(directory)
    names = _layer_names(files, config.text_config.num_hidden_layers, shape, directory)
    vlm = _load_shell(kind, config, directory, dtype).to(device).eval()
    language = vlm.model.language_model
    embedding, rotary = language.embed_tokens.weight.detach(), language.rotary_emb
    head = Head(language.norm.weight.detach(), vlm.lm_head.weight.detach(), shape)
    vlm.lm_head = None
    layers = [DecoderLayer(Part(files, names_of_one, dtype, device), shape) for names_of_one in names]
    return Base(vlm, config, shape, embedding, rotary, layers, head, _eos(vlm))


def _eos(vlm: Any) -> frozenset[int]:
    """What `generate` stops at; the configuration's where the directory has no generation_config.json."""
    eos = vlm.generation_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or [])


def _layer_names(
    files: TensorFiles, layers: int, shape: DecoderShape, directory: Path
) -> list[dict[str, str]]:
    """For every layer: LLaMA name -> name in the files. Checks that just these are there, in their shapes."""
    found = {name: match for name in files.shapes if (match := LAYER_NAME.fullmatch(name))}
    full_name = {(int(match[1]), match[2]): name for name, match in found.items()}
    leaves = layer_shapes(shape)
    # Missing ones are called by the newest name, or by that of their neighbours.
    prefix = next((name[: match.start(1)] for name, match in found.items()), LAYERS_NOW)
    names = [
        {leaf: full_name.get((layer, leaf), f"{prefix}{layer}.{leaf}") for leaf in leaves}
        for layer in range(layers)
    ]
    expected = {name: leaves[leaf] for of_one in names for leaf, name in of_one.items()}
    check_shapes({name: files.shapes[name] for name in found}, expected, directory)
    return names


def _load_shell(kind: Any, config: Any, directory: Path, dtype: torch.dtype) -> Any:
    """The model with no decoder layer, filled from the directory."""
    config = deepcopy(config)
    config.text_config.num_hidden_layers = 0
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = []
    try:
        with _quiet():
            vlm, report = kind.from_pretrained(
                directory, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # whatever a broken file makes the loader raise, the caller gets one type
        raise CheckpointError(f"cannot load {directory}: {error}") from error
    _check_report(report, directory)
    return vlm


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers would warn of all the decoder's layers; its report is read and judged here instead."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_report(report: dict[str, Any], directory: Path) -> None:
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{directory}: tensor {name} has shape {list(found)}, expected {list(wanted)}")
    if report["missing_keys"]:
        raise CheckpointError(f"{directory}: missing tensors: {', '.join(sorted(report['missing_keys']))}")
    unknown = sorted(name for name in report["unexpected_keys"] if not name.startswith(LAYERS_NOW))
    if unknown:
        raise CheckpointError(f"{directory}: unknown tensors: {', '.join(unknown)}")
