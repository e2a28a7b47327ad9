"""`twigserve verify`: a checkpoint loaded in each number format and examined; one verdict.

Invariant: what does not load is a failed check, and never two engines are in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.engine import Engine, EngineConfig
from model.examination import BATCH, BUDGETS, NEAR_TIE, Check, Tick, examine


@dataclass(frozen=True)
class VerifyConfig:
    """pictures: files. dtypes: each loads the checkpoint anew. batch: how many questions, asked together too.

    fork_layer, drop_layer: as the engine's.
    """

    pictures: Sequence[Path]
    base: str = "embedded"
    twig: str | None = None
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: int | None = None
    batch: int = BATCH
    max_tokens: int = 32
    fork_layer: int | None = None
    drop_layer: int | None = None

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("verify needs at least one picture")
        if self.max_tokens < 4:
            raise ValueError(f"max_tokens must be at least 4, not {self.max_tokens}")
        if unknown := sorted(set(self.dtypes) - set(NEAR_TIE)):
            raise ValueError(f"dtype must be one of {', '.join(NEAR_TIE)}, not {', '.join(unknown)}")

    @property
    def answers(self) -> int:
        """At most so many are given: plain, resumed, and three other ways, pruned and not."""
        return len(self.dtypes) * len(BUDGETS) * 5 * self.batch


def verify(config: VerifyConfig, tick: Tick = lambda _answers: None) -> dict[str, Any]:
    """The verdict: {"ok", "checks": [{"name", "ok", "detail"}]}; what does not load is a check, too."""
    checks: list[Check] = []
    for dtype in config.dtypes:
        try:
            engine = Engine.from_pretrained(
                config.base,
                config.twig,
                device=config.device,
                dtype=dtype,
                config=EngineConfig(max_batch=config.batch, threads=config.threads, governor=False),
                fork_layer=config.fork_layer,
                drop_layer=config.drop_layer,
            )
        except Exception as error:  # a checkpoint that does not load is what was to be found out
            checks.append(Check(f"{dtype}: load", False, f"{type(error).__name__}: {error}"))
            continue
        checks += examine(engine, config.pictures, config.batch, config.max_tokens, tick)
        del engine
        gc.collect()
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}
