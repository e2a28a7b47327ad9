"""The format that is chosen, on machines with and without bf16 instructions or native kernels."""

from __future__ import annotations

import pytest
import torch

from model import dtypes
from model.dtypes import DTYPES, emulated, resolve_dtype, seeing_dtype
from tests.model.harness import IMAGE, World, ask, run

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["bf16", "no-bf16"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(dtypes, "_cpu_has_bfloat16", lambda: request.param)
    return bool(request.param)


def test_auto_is_bfloat16_wherever_something_multiplies_it_well(multiplies: bool) -> None:
    assert resolve_dtype("auto", GPU) == torch.bfloat16
    assert resolve_dtype("auto", CPU, native=True) == torch.bfloat16
    assert resolve_dtype("auto", CPU) == (torch.bfloat16 if multiplies else torch.float32)


def test_what_is_named_is_taken(multiplies: bool) -> None:
    for name, dtype in DTYPES.items():
        assert resolve_dtype(name, CPU) == dtype
    with pytest.raises(ValueError, match="bf16"):
        resolve_dtype("bf16", CPU)


def test_the_tower_never_computes_in_emulated_bfloat16(multiplies: bool) -> None:
    assert seeing_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if multiplies else torch.float32)
    assert seeing_dtype(torch.bfloat16, GPU) == torch.bfloat16
    assert seeing_dtype(torch.float32, CPU) == torch.float32
    assert emulated(torch.bfloat16, CPU) is not multiplies


def test_bfloat16_by_torch_is_warned_of_where_it_is_emulated(
    tame: World, multiplies: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = tame.engine(dtype="bfloat16", kernels="torch")
    assert run(engine, ask(tame.prompt(1, 5, IMAGE, 3)))[0].error is None
    assert ("emulated" in caplog.text) is not multiplies


def test_auto_and_bfloat16_are_one_where_kernels_are(tame: World) -> None:
    engine = tame.engine(dtype="auto")
    if engine.kernels != "native":
        pytest.skip("no native kernels on this machine")
    assert engine.dtype == "bfloat16"
    prompt = tame.prompt(1, 5, IMAGE, 3)
    expected = run(tame.engine(dtype="bfloat16"), ask(prompt))[0].token_ids
    assert run(engine, ask(prompt))[0].token_ids == expected
