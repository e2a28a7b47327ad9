"""The commands page: what `--help` says after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.testing import CliRunner

from service.cli import app

INTRO = "# Commands\n\nWhat `--help` says after each of them.\n"
# typer fits its help to the terminal; the page must not depend on who builds it.
TERMINAL = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}


def page() -> str:
    return "\n".join([INTRO, *(_section(words) for words in _commands(typer.main.get_command(app), ()))])


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    if not children:
        yield words
    for name, child in children.items():
        yield from _commands(child, (*words, name))


def _section(words: tuple[str, ...]) -> str:
    shown = CliRunner().invoke(app, [*words, "--help"], env=TERMINAL)
    if shown.exit_code != 0:
        raise RuntimeError(f"twigserve {' '.join(words)} --help failed: {shown.output}")
    lines = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
    return f"## twigserve {' '.join(words)}\n\n```text\n{lines}\n```\n"
