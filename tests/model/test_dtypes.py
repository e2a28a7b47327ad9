"""The format that is chosen, with and without bf16 instructions or native kernels; and what overflows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model import dtypes
from model.dtypes import DTYPES, emulated, resolve_dtype, seeing_dtype
from model.request import Request
from tests.model.harness import IMAGE, World, ask, drive, run
from tests.model.test_batching import facts
from tests.model.tiny import Shape, TwigShape

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


OVERFLOWING = 50


def overflow_at_one_token(vlm: LlavaForConditionalGeneration, _tokenizer: PreTrainedTokenizerFast) -> None:
    language = vlm.model.language_model
    with torch.no_grad():
        language.embed_tokens.weight[OVERFLOWING, :2] = 65_000.0
        down = language.layers[3].mlp.down_proj.weight
        down[0] *= 3000
        down[1] = -down[0]


@pytest.mark.parametrize("speculation", [False, True])
def test_what_overflows_ends_as_an_error_and_harms_nobody(tmp_path: Path, speculation: bool) -> None:
    """It was answered with token 0 to the end, and its keys and values stayed: a later request in the slot,
    padded beside a longer one, read masked NaN and was answered wrongly."""
    world = World.create(tmp_path, Shape(seed=1), TwigShape(), edit=overflow_at_one_token)
    engine = world.engine(dtype="float16", max_batch=2)

    def asked(name: str, text: int, *ending: int) -> Request:
        prompt = world.prompt(1, IMAGE, text)
        ids = [51 if token == OVERFLOWING else token for token in prompt.short_ids]
        request = ask(prompt, name, retained=8, speculation=speculation)
        return replace(request, prompt_token_ids=[*ids, *ending])

    few, many = asked("few", 3), asked("many", 20)
    before = [facts(result) for result in run(engine, few, many)]
    bad = [asked(name, 40, OVERFLOWING, 60, 61) for name in ("bad", "too")]
    for result in run(engine, *bad):
        assert (result.finish_reason, result.token_ids) == ("error", [])
        assert "not finite in float16" in str(result.error)
    assert [facts(result) for result in run(engine, few, many)] == before
    beside = {name: facts(trace.result) for name, trace in drive(engine, {0: [bad[0], few, many]}).items()}
    assert [beside["few"]["token_ids"], beside["many"]["token_ids"]] == [one["token_ids"] for one in before]
