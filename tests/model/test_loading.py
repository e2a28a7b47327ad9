"""Loading peaks at little more than the weights, leaves nothing behind, and reads one model alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.bench.loading import BaseShape, run
from model.engine import Engine
from tests.model.harness import IMAGE, World, ask
from tests.model.tiny import Shape, write_base

# Most of it decoder, as in the published models; one layer is a twenty-fourth of it.
SHAPE = BaseShape(24, 768, 2048, 64, 2000, tower_layers=2, tower_hidden=64)


def test_loading_peaks_at_little_more_than_the_weights(tmp_path: Path) -> None:
    """transformers' loader maps whole shards, and once all layers were held twice."""
    report = run(SHAPE, tmp_path)
    assert report["weights_bytes"] > 300_000_000
    assert report["load_ratio"] <= 1.15
    assert report["prompt_tokens"] == 576 + 33
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whole_last", [False, True])
def test_one_file_and_shards_side_by_side_are_never_mixed(
    wild: World, tmp_path: Path, whole_last: bool
) -> None:
    """Another model's shards in the same directory gave us their layers, and transformers read the rest from
    the one file: answers of no model at all. The one file counts, as transformers reads it."""
    base = tmp_path / "base"
    other = write_base(tmp_path / "other", Shape(seed=5))
    writers = [
        lambda: wild.vlm.save_pretrained(base),
        lambda: other.save_pretrained(base, max_shard_size="200KB"),
    ]
    for write in reversed(writers) if whole_last else writers:
        write()
    if not (base / "model.safetensors").exists():  # a writer may clear away what it does not write
        pytest.skip("transformers left one of the two alone")
    assert (base / "model.safetensors.index.json").exists()
    prompt = wild.prompt(0, 5, IMAGE, 4)
    (result,) = Engine.from_pretrained(base, dtype="float32").generate([ask(prompt, max_tokens=10)])
    assert result.token_ids == wild.generate(prompt, 10)
