"""`bench --memory`: from configuration files alone, and equal to what the engine allocates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.bench.memory import PAPER, MemoryConfig, run_memory
from model.checkpoint import CONFIG_FILE, TWIG_FILE, WEIGHTS_FILE, CheckpointError
from model.memory import STEP_TOKENS, kv_tokens
from model.request import RequestError
from service.cli import app
from tests.model.harness import IMAGE, World, ask, run


def test_the_papers_shape() -> None:
    """576 visual and 64 text tokens, 128 of answer, 16 KiB a token and layer."""
    report = run_memory(MemoryConfig(PAPER.name))
    sizes = {row["method"]: row["bytes"] for row in report["results"]}
    assert sizes["base"] == {"full": 0, "kept": 32 * 767 * 16_384, "text": 0, "total": 32 * 767 * 16_384}
    assert sizes["unpruned"]["total"] == 35 * 767 * 16_384
    assert sizes["ttp"] == {
        "full": 5 * 767 * 16_384,
        "kept": 22 * (64 + 41 + 127) * 16_384,
        "text": 8 * (64 + 127) * 16_384,
        "total": (5 * 767 + 22 * 232 + 8 * 191) * 16_384,
    }
    assert [row["ratio"] for row in report["results"]] == [1.0, 1.0938, 0.4265]


def copy_of_configs(world: World, directory: Path) -> tuple[str, str]:
    """Base and twig without weights."""
    names = {"base": ("config.json",), "twig": ("config.json", "twig_config.json")}
    for part, files in names.items():
        (directory / part).mkdir()
        for name in files:
            (directory / part / name).write_text((world.directory / part / name).read_text())
    return str(directory / "base"), str(directory / "twig")


@pytest.mark.parametrize(("method", "retained"), [("unpruned", 16), ("ttp", 8), ("ttp", 6)])
def test_it_is_what_the_tensors_take(tame: World, tmp_path: Path, method: str, retained: int) -> None:
    """Reckoned without any weight; per token, since a slab is rounded up and a request is not."""
    base, twig = copy_of_configs(tame, tmp_path)
    prompt = tame.prompt(1, 12, IMAGE, 5)
    engine = tame.engine(max_batch=1, kv_cache_bytes=10**8)
    result = run(engine, ask(prompt, max_tokens=9, retained=retained))[0]
    text = result.prompt_tokens - result.image_tokens
    report = run_memory(
        MemoryConfig(base, twig, "float32", text, 9, () if method == "unpruned" else (retained,))
    )
    row = {row["method"]: row for row in report["results"]}[method]
    assert row["kept_tokens"] == result.kept_tokens
    tokens = kv_tokens(text, result.image_tokens, result.kept_tokens, 9)
    for group, size, count in zip(engine._runner.cache.groups, row["bytes"].values(), tokens, strict=False):
        assert group.lengths == [0]
        assert size * group.capacity == group.slab.nbytes * count
        assert count <= group.capacity < count + STEP_TOKENS


def test_a_base_without_a_twig_has_one_row(tame: World) -> None:
    report = run_memory(MemoryConfig(str(tame.base_path)))
    assert [row["method"] for row in report["results"]] == ["base"]


def test_the_command_prints_json_beside_a_table() -> None:
    done = CliRunner().invoke(app, ["bench", "--memory", "--model", PAPER.name, "--json"])
    assert done.exit_code == 0, done.output
    assert "KV cache of one request" in done.stderr
    assert json.loads(done.stdout)["results"][-1]["kept_tokens"] == 41
    embedded = CliRunner().invoke(app, ["bench", "--memory", "--retained-tokens", "64", "--json"])
    assert json.loads(embedded.stdout)["layers"]["kept"] > 0


def test_a_published_twig_has_its_layers_said(tame: World, tmp_path: Path) -> None:
    """Caught once: `bench` asked for K and F, and had no options for them."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(tame.twig_path / file, tmp_path)
    asked = ["bench", "--memory", "--model", str(tame.base_path), "--twig", str(tmp_path)]
    asked += ["--retained-tokens", "8"]
    config = json.loads((tame.twig_path / TWIG_FILE).read_text())
    layers = ["--fork-layer", str(config["fork_layer"]), "--drop-layer", str(config["drop_layer"])]
    assert "give both fork_layer and drop_layer" in CliRunner().invoke(app, asked).output
    done = CliRunner().invoke(app, [*asked, *layers])
    assert done.exit_code == 0, done.output


def test_what_cannot_be_reckoned_is_named(tame: World, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="retained_tokens 5 is impossible"):
        run_memory(MemoryConfig(str(tame.base_path), str(tame.twig_path), retained_tokens=(5,)))
    with pytest.raises(CheckpointError, match="nothing"):
        run_memory(MemoryConfig(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="dtype"):
        MemoryConfig(dtype="int4")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(CheckpointError, match="give image_tokens"):
        run_memory(MemoryConfig(str(tmp_path)))
