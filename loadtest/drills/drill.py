"""What a drill is, how it is run and what is counted.

lost: accepted requests without their whole answer. duplicated: tokens repeated, missing or wrong, and any
other fault of a stream. hung: requests without an end within the client's patience. `faults` are what else a
drill saw that must not be; with them, or with a count above zero, the drill has failed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.drills.clients import Outcome
from loadtest.drills.stage import Stage, folder_and_stage
from tests.service.stub_engine import expected_tokens, text_of


@dataclass
class Report:
    """errors: the code that a request with this prompt has to end in, instead of an answer.

    tokens: what a request with this prompt has to give; the stub engine's own where it is not named.
    """

    outcomes: Sequence[Outcome]
    errors: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def need(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)


@dataclass(frozen=True)
class Drill:
    """quick: short enough for every test run."""

    name: str
    play: Callable[[Path, list[Stage]], Awaitable[Report]]
    quick: bool


@dataclass(frozen=True)
class Verdict:
    line: dict[str, Any]
    faults: list[str]
    logs: str

    @property
    def passed(self) -> bool:
        return not self.faults and not any(self.line[name] for name in ("lost", "duplicated", "hung"))


DRILLS: dict[str, Drill] = {}

Play = Callable[[Path, list[Stage]], Awaitable[Report]]


def drill(*, quick: bool = False) -> Callable[[Play], Play]:
    def register(play: Play) -> Play:
        name = play.__name__
        DRILLS[name] = Drill(name, play, quick)
        return play

    return register


async def run(chosen: Drill) -> Verdict:
    began = time.monotonic()
    async with folder_and_stage() as (folder, stages):
        report = await chosen.play(folder, stages)
        logs = "\n".join(stage.tails() for stage in stages)
    line = {"drill": chosen.name, "requests": len(report.outcomes), **counts(report)}
    line["seconds"] = round(time.monotonic() - began, 1)
    return Verdict(line, [*report.faults, *complaints(report)], logs)


def counts(report: Report) -> dict[str, int]:
    hung = sum(outcome.hung for outcome in report.outcomes)
    lost = sum(not outcome.hung and is_lost(report, outcome) for outcome in report.outcomes)
    duplicated = sum(wrong_tokens(report, outcome) for outcome in report.outcomes)
    return {"lost": lost, "duplicated": duplicated, "hung": hung}


def is_lost(report: Report, outcome: Outcome) -> bool:
    due = report.errors.get(outcome.prompt)
    return outcome.error != due if due is not None else outcome.answer is None


def wrong_tokens(report: Report, outcome: Outcome) -> int:
    if outcome.answer is None:
        return 0
    expected = report.tokens.get(outcome.prompt) or expected_tokens(outcome.prompt, outcome.max_tokens)
    wrong = int(outcome.prompt not in report.tokens and outcome.answer["text"] != text_of(expected))
    if outcome.check is not None:
        wrong += outcome.check.wrong_tokens(expected) + len(outcome.check.faults)
    return wrong


def complaints(report: Report) -> list[str]:
    """Every bad outcome in words, the first few."""
    found = []
    for outcome in report.outcomes:
        if outcome.hung or is_lost(report, outcome):
            refused = [f"{refusal.status} {refusal.code}" for refusal in outcome.refusals[-3:]]
            found.append(f"{outcome.prompt!r}: hung={outcome.hung} error={outcome.error} refused={refused}")
        if outcome.check is not None:
            found += [f"{outcome.prompt!r}: {fault}" for fault in outcome.check.faults]
    return found[:8]
