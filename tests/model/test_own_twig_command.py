"""`twigserve train twig --base`: one twig from however many processes, and options told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from service.cli import app
from tests.model.harness import World
from tests.model.sharing import run_in_two
from tests.model.tiny import Shape, TwigShape


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("own"), Shape(max_len=512), TwigShape())


@pytest.mark.timeout(600)  # three more processes that import torch, on however busy a machine
def test_two_processes_train_the_same_twig_as_one(world: World, data: Path, tmp_path: Path) -> None:
    """Gradients over gloo, through the command; a part of a batch in each process."""
    options = [
        "train", "twig", "--base", str(world.base_path), "--data", str(data), "--fork-layer", "2",
        "--twig-layers", "1", "--drop-layer", "4", "--batch", "4", "--micro-batch", "1", "--passes", "1",
        "--learning-rate", "1e-3", "--dtype", "float32", "--threads", "1",
    ]  # fmt: skip
    alone, two = (["--runs", str(tmp_path / name), "--out", str(tmp_path / f"{name}-twig")] for name in "ab")
    done = CliRunner().invoke(app, [*options, *alone])
    assert done.exit_code == 0, done.output
    run_in_two("service.cli", *options, *two, seconds=500)
    first, second = (load_file(tmp_path / f"{name}-twig" / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name].float(), weight.float(), atol=1e-2, rtol=1e-2, msg=name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--base", "."], "--data"),
        (["--draft", "base"], "--draft goes with --base"),
        (["--micro-batch", "2", "--data", "d.json"], "--data, --micro-batch goes with --base"),
        (["--base", ".", "--data", "d.json", "--out", "o", "--warmup", "2"], "warmup"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", "twig", *options])
    assert done.exit_code == 2
    assert told in done.output
    assert "Traceback" not in done.output
