"""What is set once, at the edge: the engine's limits and the twig's shape. No torch here.

Invariant: both are frozen and checked when made; an unknown key stops the process and is named.
Knows nothing of checkpoints on disk, requests or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from model.scorers import SCORERS

ImageFit = Literal["pad"]
Kernels = Literal["auto", "torch"]


# The whole numbers of `EngineConfig` and the least that each may be; those that are never None.
LEAST = {
    "max_batch": 1,
    "max_model_len": 1,
    "kv_cache_bytes": 1,
    "image_cache_bytes": 0,
    "max_images": 1,
    "draft_tokens": 0,
    "max_image_tokens": 1,
    "threads": 1,
}
ALWAYS = ("max_batch", "image_cache_bytes", "max_images")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_threshold(value: float) -> None:
    _require(type(value) in (int, float), f"draft_threshold must be a number, not {value!r}")
    _require(0.0 <= value <= 1.0, f"draft_threshold must lie in 0..1, not {value}")


@dataclass(frozen=True)
class EngineConfig:
    """Limits and defaults of one engine; None means what the checkpoint (or its twig) says.

    max_batch: sequences decoded together. max_model_len: prompt and output tokens of one sequence.
    kv_cache_bytes: the most the KV cache may hold; what does not fit yet waits. None: what max_batch needs.
    image_cache_bytes: the most that is remembered of pictures that were asked about before; 0: nothing.
    draft_tokens, draft_threshold: the most drafts a round, and the probability under which drafting stops.
    image_fit: "pad" pads to a square with the mean colour first, as the published twig was trained.
    max_image_tokens: the most visual tokens of one image where pictures keep their own resolution
    (qwen2_5_vl): larger ones are shrunk.
    quality: tier name -> R-bar of one image. threads: torch's, for the whole process.
    kernels: "auto" decodes with native code where it can be had, "torch" with torch's operations.
    scorer: who ranks the visual tokens (`model.scorers`): the twig, or one of those it is compared with.
    governor: whether drafts are shortened, down to none, where they cost more than they bring.
    batch_invariant: the same answer and scores to the last bit whatever else is asked at the time, for a
    little time of the vision tower's. Of native kernels on a CPU alone.
    """

    max_batch: int = 8
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    image_cache_bytes: int = 256 << 20
    max_images: int = 8
    draft_tokens: int | None = None
    draft_threshold: float | None = None
    image_fit: ImageFit | None = None
    max_image_tokens: int | None = None
    quality: Mapping[str, int] | None = None
    threads: int | None = None
    kernels: Kernels = "auto"
    governor: bool = True
    batch_invariant: bool = False
    scorer: str = "ttp"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None and name not in ALWAYS:
                continue
            _require(type(value) is int, f"{name} must be a whole number, not {value!r}")
            _require(value >= least, f"{name} must be at least {least}, not {value}")
        for name in ("governor", "batch_invariant"):
            value = getattr(self, name)
            _require(type(value) is bool, f"{name} must be True or False, not {value!r}")
        for tier, retained in (self.quality or {}).items():
            _require(type(retained) is int, f"quality {tier!r} must be a whole number, not {retained!r}")
        _require(self.image_fit in (None, "pad"), f'image_fit must be None or "pad", not {self.image_fit!r}')
        _require(
            self.kernels in ("auto", "torch"), f'kernels must be "auto" or "torch", not {self.kernels!r}'
        )
        _require(self.scorer in SCORERS, f"scorer must be one of {', '.join(SCORERS)}, not {self.scorer!r}")
        if self.draft_threshold is not None:
            _check_threshold(self.draft_threshold)


@dataclass(frozen=True)
class TwigConfig:
    """`twig_config.json`: where the twig grows (K), how deep it is (T), where visual tokens end (F).

    retained_tokens: the R-bar of one image it was trained for, None where it says nothing.
    base_model, base_sha256: the base it belongs to; empty where unknown.
    """

    fork_layer: int
    twig_layers: int
    drop_layer: int
    retained_tokens: int | None = None
    draft_tokens: int = 5
    draft_threshold: float = 0.6
    base_model: str = ""
    base_sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("fork_layer", "twig_layers", "drop_layer", "draft_tokens"):
            value = getattr(self, name)
            _require(type(value) is int, f"{name} must be a whole number, not {value!r}")
        _require(
            self.retained_tokens is None or type(self.retained_tokens) is int,
            f"retained_tokens must be null or a whole number, not {self.retained_tokens!r}",
        )
        _require(self.fork_layer >= 0, f"fork_layer must not be negative, not {self.fork_layer}")
        _require(self.twig_layers >= 1, f"twig_layers must be at least 1, not {self.twig_layers}")
        _require(
            self.drop_layer > self.fork_layer,
            f"drop_layer ({self.drop_layer}) must be above fork_layer ({self.fork_layer})",
        )
        _require(self.draft_tokens >= 0, f"draft_tokens must not be negative, not {self.draft_tokens}")
        _check_threshold(self.draft_threshold)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TwigConfig:
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        _require(not unknown, f"unknown keys in the twig's configuration: {', '.join(unknown)}")
        missing = sorted({"fork_layer", "twig_layers", "drop_layer"} - set(data))
        _require(not missing, f"missing keys in the twig's configuration: {', '.join(missing)}")
        return cls(**data)
