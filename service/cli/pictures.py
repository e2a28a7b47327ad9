"""The pictures that a command line names: files, patterns, standard input.

Invariant: every one of them is a file that is there, or `-`; a pattern that matches nothing is an error.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"


@dataclass(frozen=True)
class NamedPicture:
    """name: as the user gave it, or as the pattern found it."""

    name: str

    @property
    def stem(self) -> str:
        return "stdin" if self.name == STDIN else Path(self.name).stem

    def read(self) -> bytes:
        return sys.stdin.buffer.read() if self.name == STDIN else Path(self.name).read_bytes()


def find(named: Sequence[str]) -> list[NamedPicture]:
    """Patterns that the shell left alone (quoted, or on Windows) are expanded, `**` too."""
    names = [name for argument in named for name in _expand(argument)]
    if names.count(STDIN) > 1:
        raise ValueError("standard input (-) can be read only once")
    return [NamedPicture(name) for name in names]


def _expand(argument: str) -> list[str]:
    if argument == STDIN or Path(argument).is_file():
        return [argument]
    if Path(argument).is_dir():
        raise ValueError(f"{argument} is a folder; name its pictures, as '{argument.rstrip('/')}/*.png'")
    found = sorted({name for name in _matching(argument) if Path(name).is_file()})
    if not found:
        raise ValueError(f"no such picture: {argument}")
    return found


def _matching(pattern: str) -> Iterator[str]:
    """As `glob`, but `**` follows no links, as in a shell: those to a folder above them have no end."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    for top in glob.iglob(str(Path(*parts[:at]))):
        for folder, below, _ in os.walk(top):
            below[:] = [name for name in below if not name.startswith(".")]
            yield from _matching(str(Path(glob.escape(folder), *(parts[at + 1 :] or "*"))))
