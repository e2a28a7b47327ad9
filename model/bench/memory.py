"""`twigserve bench --memory`: the KV cache of one request, group by group, from configuration files alone.

What is counted is what `model.memory` reserves and `model.cache` allocates, without the rounding of slabs.
Invariant: no weight is read, so that a checkpoint can be judged that this machine could not load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from model.checkpoint import CONFIG_FILE, CheckpointError, read_json, resolve
from model.config import TwigConfig
from model.dtypes import DTYPES
from model.memory import KvShape, kv_tokens
from model.pruning import kept_budget
from model.twig import read_twig_config

MIB = 2**20


@dataclass(frozen=True)
class Footing:
    """What the arithmetic needs of a checkpoint. image_tokens: M of one image."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    image_tokens: int
    twig: TwigConfig | None


# LLaVA-1.5-7B and the twig of arXiv 2503.14075, by their published configurations.
PAPER = Footing("llava-1.5-7b", 32, 32, 128, 576, TwigConfig(fork_layer=2, twig_layers=3, drop_layer=24))


@dataclass(frozen=True)
class MemoryConfig:
    """model: a base's directory, "embedded", or the name of `PAPER`. text_tokens: of the prompt.

    retained_tokens: R-bars, ours beside no pruning. image_tokens: M, where the configuration does not say.
    """

    model: str = "embedded"
    twig: str | None = None
    dtype: str = "bfloat16"
    text_tokens: int = 64
    max_tokens: int = 128
    retained_tokens: Sequence[int] = (64,)
    image_tokens: int | None = None
    fork_layer: int | None = None
    drop_layer: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for name in ("text_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def read_footing(config: MemoryConfig) -> Footing:
    if config.model == PAPER.name:
        return PAPER
    base, twig = resolve(config.model, config.twig)
    read_json(base / CONFIG_FILE)  # whose errors name the file
    whole = AutoConfig.from_pretrained(base)
    text = whole.get_text_config()
    heads = text.num_attention_heads
    return Footing(
        config.model,
        text.num_hidden_layers,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
        config.image_tokens or _image_tokens(whole, base),
        None if twig is None else _twig(twig, config, text.num_hidden_layers),
    )


def _twig(directory: Path, config: MemoryConfig, layers: int) -> TwigConfig:
    depth = read_json(directory / CONFIG_FILE).get("num_hidden_layers", 1)
    return read_twig_config(directory, config.fork_layer, config.drop_layer, depth, layers)


def _image_tokens(config: Any, base: Path) -> int:
    if config.model_type != "llava":
        raise CheckpointError(
            f"{base}: how many tokens a {config.model_type} image has depends on the image; give image_tokens"
        )
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    with_class = vision.model_type == "clip_vision_model" and config.vision_feature_select_strategy == "full"
    return patches + with_class


def run_memory(config: MemoryConfig) -> dict[str, Any]:
    """{"model","dtype","text_tokens","image_tokens","max_tokens","layers":{…},"results":[…]}.

    Methods: `base` is the base without a twig, `unpruned` the twig's engine without pruning, `ttp` with it.
    ratio is to `base`.
    """
    base = read_footing(config)
    images, element_bytes = base.image_tokens, DTYPES[config.dtype].itemsize
    place = base.twig and (base.twig.fork_layer, base.twig.twig_layers, base.twig.drop_layer)
    shapes = [
        KvShape.of(base.layers, grown, base.kv_heads, base.head_dim, element_bytes) for grown in (None, place)
    ]
    cases = [("base", shapes[0], images, images)]
    if base.twig is not None:
        cases.append(("unpruned", shapes[1], images, images))
        for retained in config.retained_tokens:
            fork, drop = base.twig.fork_layer, base.twig.drop_layer
            kept = kept_budget(retained, base.layers, images, fork, drop)
            cases.append(("ttp", shapes[1], retained, kept))
    results = []
    for method, shape, retained, kept in cases:
        tokens = kv_tokens(config.text_tokens, images, kept, config.max_tokens)
        sizes = shape.by_group(tokens)._asdict() | {"total": shape.bytes_of(tokens)}
        row = {"method": method, "retained_tokens": retained, "kept_tokens": kept, "bytes": sizes}
        results.append(row | {"ratio": round(sizes["total"] / (results or [row])[0]["bytes"]["total"], 4)})
    return {
        "model": base.name,
        "dtype": config.dtype,
        "text_tokens": config.text_tokens,
        "image_tokens": images,
        "max_tokens": config.max_tokens,
        "layers": shapes[1].layers._asdict(),
        "results": results,
    }


def print_memory(report: dict[str, Any], *, aside: bool = False) -> None:
    """aside: as `print_table` of `report`."""
    layers = report["layers"]
    asked = f"{report['text_tokens']} + {report['image_tokens']} tokens, answer {report['max_tokens']}"
    table = Table(title=f"KV cache of one request · {report['model']} · {report['dtype']} · {asked}")
    for name in ("method", "R̄", "R′", *(f"{group} × {layers[group]}" for group in layers), "MiB", "× base"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in report["results"]:
        sizes = [f"{size / MIB:.1f}" for size in row["bytes"].values()]
        if row["method"] == "base":  # whose layers are not cut into groups
            sizes[:3] = ["–"] * 3
        kept = (str(row["retained_tokens"]), str(row["kept_tokens"]))
        table.add_row(row["method"], *kept, *sizes, f"{row['ratio']:.2f}")
    Console(stderr=aside).print(table)
