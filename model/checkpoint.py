"""Checkpoints on disk: where they are, what is read from them and how, and a twig written as published.

A twig is `model.safetensors` with `lm_head.weight`, `model.norm.weight`, `model.layers.{0..T-1}.*`,
a LLaMA-style `config.json`, and (ours) `twig_config.json`.
Invariant: what cannot be read, or does not fit, is a CheckpointError that names the file and the tensor.
Knows nothing of model families beyond the LLaMA names of a decoder layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.config import TwigConfig
from model.decoder import DecoderShape

EMBEDDED = "embedded"
EMBEDDED_ID = "twigvlm-embedded"
EMBEDDED_BASE = Path(__file__).parent / "weights" / "base"
EMBEDDED_TWIG = Path(__file__).parent / "weights" / "twig"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONFIG_FILE, TWIG_FILE = "config.json", "twig_config.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor and the shapes."""


def resolve(base: str | Path, twig: str | Path | None) -> tuple[Path, Path | None]:
    """Directories of base and twig; "embedded" stands for those shipped with the package."""
    if base == EMBEDDED:
        return EMBEDDED_BASE, EMBEDDED_TWIG if twig in (None, EMBEDDED) else Path(str(twig))
    if twig == EMBEDDED:
        return Path(base), EMBEDDED_TWIG
    return Path(base), None if twig is None else Path(twig)


def model_id(directory: Path) -> str:
    """The served name of a base: its directory's, as the Hub does it."""
    return EMBEDDED_ID if directory == EMBEDDED_BASE else directory.resolve().name


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return data


def layer_shapes(shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """LLaMA names and shapes of one decoder layer."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (shape.hidden,),
        "post_attention_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (queries, shape.hidden),
        "self_attn.k_proj.weight": (keys, shape.hidden),
        "self_attn.v_proj.weight": (keys, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, queries),
        "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
    }
    if shape.out_bias:
        shapes["self_attn.o_proj.bias"] = (shape.hidden,)
    if shape.qkv_bias:
        shapes |= {
            f"self_attn.{name}_proj.bias": (size,)
            for name, size in (("q", queries), ("k", keys), ("v", keys))
        }
    return shapes


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    if missing := sorted(set(expected) - set(shapes)):
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing)}")
    if extra := sorted(set(shapes) - set(expected)):
        raise CheckpointError(f"{where}: unknown tensors: {', '.join(extra)}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(shapes[name])}, expected {list(shape)}"
            )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_twig(
    directory: str | Path,
    twig_state_dict: Mapping[str, Tensor],
    base_text_config: Any,
    twig_config: TwigConfig,
) -> None:
    """Writes the published format and `twig_config.json` beside it.

    twig_state_dict: the published names. base_text_config: the base's text config (a mapping, or an
    object with `to_dict`); its depth and vocabulary are replaced by the twig's.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = base_text_config if isinstance(base_text_config, Mapping) else base_text_config.to_dict()
    head_rows = twig_state_dict["lm_head.weight"].shape[0]
    config = {
        **config,
        "num_hidden_layers": twig_config.twig_layers,
        "vocab_size": head_rows,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": False,
    }
    # Clones: safetensors refuses tensors that share memory, as a head tied to its embedding does.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in twig_state_dict.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, default=str) + "\n")
    (directory / TWIG_FILE).write_text(json.dumps(twig_config.to_dict(), indent=2) + "\n")
