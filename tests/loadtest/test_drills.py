"""The short drills, a few at a time (each has a service of its own), and the checker that they trust.

The long ones run behind `make drills`.
"""

from __future__ import annotations

import asyncio

import pytest

from loadtest.drills import gateway_faults, redis_faults, version_faults, worker_faults
from loadtest.drills.checker import StreamCheck
from loadtest.drills.drill import DRILLS, Drill, Verdict, run

MODULES = (worker_faults, gateway_faults, redis_faults, version_faults)
AT_ONCE = 2
QUICK = [drill for drill in DRILLS.values() if drill.quick]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict | BaseException]:
    async def play() -> list[Verdict | BaseException]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(drill: Drill) -> Verdict:
            async with places:
                return await run(drill)

        return await asyncio.gather(*map(one, QUICK), return_exceptions=True)

    return dict(zip((drill.name for drill in QUICK), asyncio.run(play()), strict=True))


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [drill.name for drill in QUICK])
def test_nothing_is_lost(verdicts: dict[str, Verdict | BaseException], name: str) -> None:
    verdict = verdicts[name]
    if isinstance(verdict, BaseException):
        raise verdict
    assert verdict.passed, f"{verdict.line} {verdict.faults}\n{verdict.logs}"


def a_stream(*events: tuple[str, str, dict]) -> StreamCheck:  # type: ignore[type-arg]
    check = StreamCheck()
    for event in events:
        check.see(*event)
    return check


def tokens(*ids: int) -> dict[str, object]:
    return {"token_ids": list(ids), "text": "".join(f" w{i}" for i in ids), "drafted": [False] * len(ids)}


DONE = {"text": " w1 w2", "usage": {"completion_tokens": 2}}


def test_the_checker_takes_a_whole_stream() -> None:
    check = a_stream(("token", "1-2", tokens(1)), ("token", "2-4", tokens(2)), ("done", "2-5", DONE))
    assert check.faults == []
    assert check.wrong_tokens([1, 2]) == 0


@pytest.mark.parametrize(
    "events",
    [
        [("token", "1-2", tokens(1)), ("token", "1-2", tokens(2)), ("done", "1-4", DONE)],
        [("token", "2-2", tokens(1)), ("token", "1-3", tokens(2)), ("done", "2-4", DONE)],
        [("token", "1-2", tokens(1, 1)), ("done", "1-4", DONE)],
        [("token", "1-2", tokens(1)), ("done", "1-4", DONE)],
        [("token", "1-2", tokens(1, 2)), ("done", "1-4", DONE), ("token", "1-5", tokens(3))],
        [("token", "1-2", tokens(1, 2)), ("done", "1-4", DONE), ("done", "1-5", DONE)],
        [("token", "x", tokens(1, 2)), ("done", "1-4", DONE)],
    ],
)
def test_the_checker_sees(events: list) -> None:  # type: ignore[type-arg]
    assert a_stream(*events).faults


def test_the_checker_counts_wrong_tokens() -> None:
    assert a_stream(("token", "1-2", tokens(1, 2, 2))).wrong_tokens([1, 2, 3, 4]) == 2
