"""What a benchmark is asked to do; checked when made."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("generate", "generate_batched", "plain", "ttp", "ssd", "ttp_ssd")
PRUNING, SPECULATING = frozenset({"ttp", "ttp_ssd"}), frozenset({"ssd", "ttp_ssd"})


@dataclass(frozen=True)
class BenchConfig:
    """model: "embedded", "mid" or a base's directory; twig: its twig's directory (the first two: their own).

    cache: where "mid" is written and found again; None: a directory that is gone after the run.

    pictures: how many are described one after the other at batch 1; a larger batch takes one of each row.
    retained_tokens: R-bar of ttp and ttp_ssd, None for the tier "fast".
    dtype: of our side. generate_dtype: of the other; "fastest" is measured (`model.bench.peer`).
    fork_layer, drop_layer: for a published twig without twig_config.json.
    """

    model: str = "embedded"
    twig: str | None = None
    batch: tuple[int, ...] = (1, 8)
    max_tokens: int = 128
    methods: tuple[str, ...] = METHODS
    threads: int = 2
    dtype: str = "auto"
    generate_dtype: str = "fastest"
    device: str = "cpu"
    repeats: int = 3
    pictures: int = 4
    retained_tokens: int | None = None
    fork_layer: int | None = None
    drop_layer: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ValueError(f"unknown methods: {', '.join(unknown)}; known: {', '.join(METHODS)}")
        if not self.methods or not self.batch:
            raise ValueError("at least one method and one batch size are needed")
        for name, least in (("max_tokens", 2), ("threads", 1), ("repeats", 1), ("pictures", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if min(self.batch) < 1:
            raise ValueError(f"batch sizes must be at least 1, not {min(self.batch)}")
