"""The twig: its layers and head, loaded from the published format.

K and F come from `twig_config.json` or from the caller (published weights do not carry them).
Invariant: a missing, extra or misshapen tensor is an error that names it, never ignored.
Knows nothing of caches, rounds or model families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.checkpoint import (
    TWIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    check_shapes,
    file_sha256,
    layer_shapes,
    read_json,
)
from model.config import TwigConfig
from model.decoder import DecoderLayer, DecoderShape, Head
from model.tensor_files import Part, TensorFiles

# Hashing more than this at every start would cost more than a wrong base.
HASHED_BYTES = 1 << 30


@dataclass(frozen=True)
class Twig:
    """A loaded twig: its place in the base, its layers and its head."""

    config: TwigConfig
    layers: list[DecoderLayer]
    head: Head


def _twig_expected(
    shapes: Mapping[str, tuple[int, ...]], layers: int, shape: DecoderShape
) -> dict[str, tuple[int, ...]]:
    # A head with fewer rows than the base's padded vocabulary never drafts the ids it lacks.
    head = shapes.get("lm_head.weight")
    rows = min(head[0], shape.vocabulary) if head else shape.vocabulary
    expected: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (rows, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    for layer in range(layers):
        expected |= {f"model.layers.{layer}.{k}": v for k, v in layer_shapes(shape).items()}
    return expected


def read_twig_config(
    directory: Path, fork_layer: int | None, drop_layer: int | None, layers_in_file: int, base_layers: int
) -> TwigConfig:
    """`twig_config.json`, with the caller's K and F over it; without that file both must be given."""
    path = directory / TWIG_FILE
    given = {"fork_layer": fork_layer, "drop_layer": drop_layer}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        if path.exists():
            config = replace(TwigConfig.from_dict(read_json(path)), **given)
        elif len(given) == 2:
            config = TwigConfig(twig_layers=max(1, layers_in_file), **given)
        else:
            raise CheckpointError(f"{directory} has no {TWIG_FILE}: give both fork_layer and drop_layer")
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from error
    if config.drop_layer > base_layers:
        raise CheckpointError(
            f"{directory}: drop_layer {config.drop_layer} is above the base's {base_layers} layers"
        )
    return config


def _check_base_hash(config: TwigConfig, base: Path, twig: Path) -> None:
    weights = base / WEIGHTS_FILE
    if not config.base_sha256 or not weights.exists() or weights.stat().st_size > HASHED_BYTES:
        return
    found = file_sha256(weights)
    if found != config.base_sha256:
        raise CheckpointError(
            f"{twig} was trained for a base with sha256 {config.base_sha256}, but {weights} has {found}"
        )


def load_twig(
    directory: Path | None,
    base: Path,
    base_layers: int,
    shape: DecoderShape,
    *,
    fork_layer: int | None,
    drop_layer: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Twig | None:
    """None where there is no directory; then there must be no layers of one either."""
    if directory is None:
        if fork_layer is not None or drop_layer is not None:
            raise CheckpointError("fork_layer and drop_layer are a twig's, and there is no twig")
        return None
    files = TensorFiles(directory)
    numbers = {name.split(".")[2] for name in files.shapes if name.startswith("model.layers.")}
    config = read_twig_config(directory, fork_layer, drop_layer, len(numbers), base_layers)
    expected = _twig_expected(files.shapes, config.twig_layers, shape)
    check_shapes(files.shapes, expected, directory / WEIGHTS_FILE)
    _check_base_hash(config, base, directory)
    names = layer_shapes(shape)
    layers = [
        DecoderLayer(
            Part(files, {name: f"model.layers.{layer}.{name}" for name in names}, dtype, device), shape
        )
        for layer in range(config.twig_layers)
    ]
    norm, head = (files.read(name, dtype, device) for name in ("model.norm.weight", "lm_head.weight"))
    return Twig(config, layers, Head(norm, head, shape))
