"""The Dockerfile as its stages: as much of its grammar as the tests need, which is less than all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """`base` is another stage's name or an image; instructions are (NAME, rest) in their order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for name, rest in _instructions((ROOT / "Dockerfile").read_text()):
        if name == "FROM":
            base, alias = re.split(r"\s+AS\s+", rest)
            stage = found[alias] = Stage(alias, base)
        elif found:
            stage.instructions.append((name, rest))
    return found


def lineage(name: str) -> list[Stage]:
    """The stage and those it is built on, last first."""
    known = stages()
    chain = [known[name]]
    while chain[-1].base in known:
        chain.append(known[chain[-1].base])
    return chain


def inherited(name: str, instruction: str) -> list[str]:
    return [rest for stage in lineage(name) for rest in stage.all(instruction)]


def variables(name: str) -> dict[str, str]:
    pairs = [pair for rest in reversed(inherited(name, "ENV")) for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, rest in parts]
