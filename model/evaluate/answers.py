"""What engines have answered so far, kept as lines of JSON: a run that was cut off goes on where it stopped.

Invariant: an answer is found again only under the very checkpoint, way of asking, question and picture that
it was given to; a file of another checkpoint is refused, not mixed in. Knows no engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.request import Result


@dataclass(frozen=True)
class Answer:
    text: str
    rounds: int
    drafted: int
    accepted: int
    tokens: int
    decode_s: float

    @classmethod
    def of(cls, result: Result) -> Answer:
        return cls(
            text=result.text,
            rounds=result.draft_rounds,
            drafted=result.draft_tokens,
            accepted=result.accepted_tokens,
            tokens=len(result.token_ids),
            decode_s=round(result.decode_s, 5),
        )


class Answers:
    """path: None keeps them in memory alone. checkpoint: what `fingerprint` says of the weights."""

    def __init__(self, path: Path | None = None, checkpoint: str = "") -> None:
        self._path = path
        self._known: dict[tuple[str, str], Answer] = {}
        if path is None:
            return
        if path.exists():
            self._read(path, checkpoint)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"checkpoint": checkpoint}) + "\n")

    def _read(self, path: Path, checkpoint: str) -> None:
        first, *lines = path.read_text().splitlines() or [""]
        found = _parsed(first)
        if not isinstance(found, dict) or found.get("checkpoint") != checkpoint:
            raise ValueError(f"{path} holds answers of another checkpoint: remove it, or name another file")
        whole = [entry for line in lines if isinstance(entry := _parsed(line), dict)]
        for entry in whole:
            key = entry.pop("way"), entry.pop("item")
            self._known[key] = Answer(**entry)
        if len(whole) < len(lines):  # cut off in the middle of a line
            path.write_text("\n".join([first, *map(json.dumps, self._entries())]) + "\n")

    def _entries(self) -> Iterable[dict[str, Any]]:
        return ({"way": way, "item": item} | asdict(answer) for (way, item), answer in self._known.items())

    def get(self, way: str, item: str) -> Answer | None:
        return self._known.get((way, item))

    def put(self, way: str, answers: dict[str, Answer]) -> None:
        """answers: by item key."""
        self._known |= {(way, item): answer for item, answer in answers.items()}
        if self._path is not None:
            with self._path.open("a") as file:
                for item, answer in answers.items():
                    file.write(json.dumps({"way": way, "item": item} | asdict(answer)) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def fingerprint(*directories: Path | None, said: str = "") -> str:
    """Of the weight files' names, sizes and times, and what else decides the answers."""
    files = sorted(
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for directory in directories
        if directory is not None
        for path in directory.glob("*.safetensors")
    )
    return hashlib.sha256(repr((files, said)).encode()).hexdigest()[:16]
