"""Loading peaks at little more than the weights, in a process of its own, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from model.bench.loading import BaseShape, run

# Most of it decoder, as in the published models; one layer is a twenty-fourth of it.
SHAPE = BaseShape(24, 768, 2048, 64, 2000, tower_layers=2, tower_hidden=64)


def test_loading_peaks_at_little_more_than_the_weights(tmp_path: Path) -> None:
    """transformers' loader maps whole shards, and once all layers were held twice."""
    report = run(SHAPE, tmp_path)
    assert report["weights_bytes"] > 300_000_000
    assert report["load_ratio"] <= 1.15
    assert report["prompt_tokens"] == 576 + 33
    assert not list(tmp_path.iterdir())
