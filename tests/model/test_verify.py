"""`verify` passes what is right and names what is broken: faults are put into the engine one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import model.runner
from model.cache import Cache, LayerGroup
from model.engine import Engine
from model.examination import NEAR_TIE, examine
from model.request import RequestError
from model.runner import Runner
from model.verify import VerifyConfig, verify
from service.bundled import sample_pictures
from service.cli import app
from service.settings import WorkerSettings
from service.worker import load_proved
from tests.model.harness import IMAGE, World, ask, run

TOKENS = 12
WAYS = ["plain", "resumed half-way", "batch 8", "speculation", "speculation, batch 8"]


def failed(engine: Engine) -> set[str]:
    """The ways whose checks failed, pruned or not."""
    checks = examine(engine, sample_pictures(), 8, TOKENS)
    return {check.name.split(": ")[1] for check in checks if not check.ok}


def test_a_tiny_checkpoint_passes_in_both_formats(tame: World) -> None:
    config = VerifyConfig(
        sample_pictures(), str(tame.base_path), str(tame.twig_path), threads=1, max_tokens=TOKENS
    )
    ticks: list[int] = []
    verdict = verify(config, ticks.append)
    assert verdict["ok"], verdict
    names = [check["name"] for check in verdict["checks"]]
    budgets = ("unpruned", "pruned")
    assert names == [
        f"{dtype}, {budget}: {way}" for dtype in ("float32", "bfloat16") for budget in budgets for way in WAYS
    ]
    assert sum(ticks) == config.answers
    exact = [check["detail"] for check in verdict["checks"][1:10] if "plain" not in check["name"]]
    assert all(detail.startswith("8 of 8 answers the same") for detail in exact)


def test_the_embedded_model_passes() -> None:
    verdict = verify(VerifyConfig(sample_pictures(), dtypes=("float32",), batch=3, max_tokens=6))
    assert verdict["ok"], verdict
    assert len(verdict["checks"]) == 10


def test_a_base_without_a_twig_has_fewer_ways(tame: World) -> None:
    checks = examine(tame.engine(twig=False), sample_pictures(), 8, TOKENS)
    assert [check.name.split(": ")[1] for check in checks] == WAYS[:3]
    assert all(check.ok for check in checks)


def one_too_many(draft: Sequence[int], verified: Sequence[int]) -> list[int]:
    """The draft that the base rejected is taken, too."""
    agreed = 0
    while agreed < len(draft) and draft[agreed] == verified[agreed]:
        agreed += 1
    taken = min(agreed + 1, len(draft))
    return [*draft[:taken], verified[taken]]


def test_an_acceptance_of_one_token_too_many_is_named(tame: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.runner, "accept", one_too_many)
    assert failed(tame.engine()) == {"speculation", "speculation, batch 8"}


@pytest.mark.parametrize("off", [-1, 1])
def test_a_roll_back_that_is_off_by_one_is_named(
    tame: World, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    """Of rounds with drafts; a plain round has nothing to roll back."""
    extend = Cache.extend
    monkeypatch.setattr(Cache, "extend", lambda self, slot, n: extend(self, slot, n + off * (n > 1)))
    assert {"speculation", "speculation, batch 8"} <= failed(tame.engine())


def test_tokens_lost_from_the_cache_are_named(tame: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round forgets its pending token: all ways are wrong alike, but not what was computed anew."""
    round_of = Runner.round

    def forgetful(self: Runner, rows: Any) -> Any:
        outcomes = round_of(self, rows)
        for slot in range(len(rows)):
            self.cache.extend(slot, -1)
        return outcomes

    monkeypatch.setattr(Runner, "round", forgetful)
    assert "resumed half-way" in failed(tame.engine())


def test_a_row_that_moves_without_its_tokens_is_named(tame: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(self: LayerGroup, source: int, target: int) -> None:
        self.lengths[target], self.lengths[source] = self.lengths[source], 0

    monkeypatch.setattr(LayerGroup, "move", move)
    found = failed(tame.engine())
    assert found
    assert found <= {"batch 8", "speculation, batch 8"}


def test_an_engine_that_breaks_is_a_failed_check(tame: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(Runner, "round", broken)
    (check, *_) = examine(tame.engine(), sample_pictures(), 8, TOKENS)
    assert not check.ok
    assert "no such device" in check.detail
    monkeypatch.setattr(Engine, "generate", broken)
    (only,) = examine(tame.engine(), sample_pictures(), 8, TOKENS)
    assert (only.name, only.ok) == ("float32, unpruned: plain", False)


def test_a_parting_at_a_near_tie_is_told_and_is_no_fault(
    tame: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.runner, "accept", one_too_many)
    monkeypatch.setitem(NEAR_TIE, "float32", 2.0)  # any two tokens tie
    checks = {
        check.name.split(": ")[1]: check for check in examine(tame.engine(), sample_pictures(), 8, TOKENS)
    }
    assert checks["speculation"].ok
    assert "part at a near-tie (logits" in checks["speculation"].detail


def test_the_parting_is_measured_on_the_right_logits(tame: World) -> None:
    """`next_logits` after a prefix has the token that the engine goes on with as its best, pruned or not."""
    engine = tame.engine()
    for retained in (8, 16):
        asked = ask(tame.prompt(3, 4, IMAGE, 5), "a", retained=retained, max_tokens=TOKENS, ignore_eos=True)
        tokens = run(engine, asked)[0].token_ids
        for length in (0, 1, 7):
            asked.resume_token_ids = tuple(tokens[:length])
            logits = engine.next_logits(asked)
            assert logits.dtype == torch.float32
            assert int(logits.argmax()) == tokens[length]
    engine.check_integrity()


def test_more_than_the_model_takes_has_no_next_token(tame: World) -> None:
    engine = tame.engine(max_model_len=40)
    asked = ask(tame.prompt(3, 4, IMAGE, 5), "a", max_tokens=2, resume=(7,) * 40)
    with pytest.raises(RequestError, match="the model takes 40") as raised:
        engine.next_logits(asked)
    assert raised.value.param == "resume_token_ids"


def test_what_does_not_load_is_a_failed_check(tame: World) -> None:
    verdict = verify(VerifyConfig(sample_pictures(), str(tame.directory / "nothing"), dtypes=("float32",)))
    assert not verdict["ok"]
    assert verdict["checks"][0]["name"] == "float32: load"
    assert "nothing" in verdict["checks"][0]["detail"]


@pytest.mark.parametrize("bad", [{"pictures": ()}, {"max_tokens": 3}, {"dtypes": ("int8",)}])
def test_configurations_that_cannot_be(bad: dict[str, Any]) -> None:
    make: Callable[..., VerifyConfig] = VerifyConfig
    with pytest.raises(ValueError, match=next(iter(bad)).rstrip("s")):
        make(**{"pictures": sample_pictures()} | bad)


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_command_prints_one_verdict(
    tame: World, monkeypatch: pytest.MonkeyPatch, broken: bool, code: int
) -> None:
    if broken:
        monkeypatch.setattr(model.runner, "accept", one_too_many)
    words = ["verify", str(tame.base_path), "--twig", str(tame.twig_path), "--dtype", "float32"]
    done = CliRunner().invoke(app, [*words, "--threads", "1", "--max-tokens", "8", "--json"])
    assert done.exit_code == code, done.output
    verdict = json.loads(done.stdout)
    assert verdict.keys() == {"ok", "checks"}
    assert verdict["ok"] is not broken
    assert all(check.keys() == {"name", "ok", "detail"} for check in verdict["checks"])
    assert ("FAIL float32, unpruned: speculation" in done.stderr) is broken


@pytest.mark.parametrize("broken", [False, True])
def test_a_worker_that_verifies_does_not_start_on_wrong_answers(
    tame: World, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    settings = WorkerSettings(
        vlm=str(tame.base_path),
        twig=str(tame.twig_path),
        dtype="float32",
        max_batch=3,
        verify=True,
        threads=1,
    )
    if not broken:
        assert load_proved(settings).stats().free_slots == 3
        return
    monkeypatch.setattr(model.runner, "accept", one_too_many)
    with pytest.raises(ValueError, match=r"failed its verification: float32, unpruned: speculation – answer"):
        load_proved(settings)
