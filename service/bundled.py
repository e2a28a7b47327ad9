"""The sample pictures that come with the package: the playground shows them, `verify` asks about them."""

from __future__ import annotations

from pathlib import Path

SAMPLES = Path(__file__).resolve().parent / "static" / "samples"


def sample_pictures() -> list[Path]:
    return sorted(SAMPLES.glob("*.png"))
