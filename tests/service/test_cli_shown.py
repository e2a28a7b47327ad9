"""What `twigserve describe` shows: colours, the bar, and nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from rich.console import Console

from service.cli.paper import DRAFTED, coloured
from service.schemas import TokenEvent
from tests.e2e.service_process import ROOT
from tests.service.describing import describe, saying
from tests.service.gateway_fixture import Live
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG

CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"


async def test_nothing_stands_on_the_line_of_the_bar(
    live: Live, worker: ScriptedWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers were once printed behind the bar, where both streams are the same terminal."""
    screen = io.StringIO()
    monkeypatch.setattr(
        "service.cli.paper.Console", lambda **_: Console(file=screen, force_terminal=True, width=80)
    )
    done = await describe("a.png", "notes.txt", "b.png", "--server", live.url)
    assert done.exit_code == 1
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-JL-Z]", "", screen.getvalue())  # all but erasing (K)
    for words in ("a.png:", "b.png:", "twigserve: notes.txt"):
        before = shown[: shown.index(words)]
        assert before.endswith(("\n", "\x1b[2K", "\r")), before[-40:]
    assert "1/3" in shown


async def test_a_failure_leaves_the_terminal_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar was once started again behind the complaint, and its cursor stayed hidden."""
    screen = io.StringIO()
    monkeypatch.setattr("service.cli.paper.Console", lambda **_: Console(file=screen, force_terminal=True))
    done = await describe("a.png", "--server", "http://127.0.0.1:9")
    assert done.exit_code == 3
    assert screen.getvalue().rindex(CURSOR_OFF) < screen.getvalue().rindex(CURSOR_ON)


async def test_an_answer_has_no_power_over_the_terminal(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    """Words of a model, of a service or of a file's name once moved the cursor and set the clipboard."""
    evil = "\x1b]52;c;ZXZpbA==\x07\x9b2J\x85 ä\nnext"
    worker.script = saying(evil)
    (folder / "\x1b[2J.txt").write_text("no picture")
    for options in ([], ["--stream"]):
        done = await describe("a.png", "b.png", "\x1b[2J.txt", "--server", live.url, *options)
        assert done.exit_code == 1
        assert not set("\x1b\x07\x9b\x85") & set(done.stdout + done.stderr)
        assert "\\x1b]52;c;ZXZpbA==\\x07\\x9b2J\\x85 ä\nnext\n" in done.stdout
        assert "\\x1b[2J.txt" in done.stderr
    done = await describe("a.png", "--server", live.url, "--json")
    assert json.loads(done.stdout)["text"] == evil


async def test_a_name_that_is_no_unicode(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    """It once ended the command as wrong use, as did what the terminal's encoding does not have."""
    worker.script = saying("a 🐝")
    os.link("a.png", b"\xff.png")
    command = [sys.executable, "-m", "service.cli", "describe", b"\xff.png", "a.png", "--server", live.url]
    for encoding, shown in (("utf-8", "a 🐝"), ("latin-1", "a \\U0001f41d")):
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
        asking = await asyncio.create_subprocess_exec(*command, env=env, stdout=PIPE, stderr=PIPE)
        out, err = await asking.communicate()
        assert asking.returncode == 0, err
        assert shown in out.decode(encoding)


async def test_a_name_is_no_markup(
    live: Live, worker: ScriptedWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("service.cli.paper.Console", lambda **_: Console(file=screen, force_terminal=True))
    (folder / "[b].png").write_bytes(PNG)
    done = await describe("[b].png", "--server", live.url)
    assert done.exit_code == 0, done.exception
    assert "[b].png" in screen.getvalue()


def test_drafted_tokens_are_coloured() -> None:
    event = TokenEvent(
        text="a b c", token_ids=[1, 2, 3], drafted=[True, True, False], pieces=["a", " b", " c"]
    )
    told = coloured([event, TokenEvent(text=" d", token_ids=[4], drafted=[True])])
    assert told.plain == "a b c d"
    green = [told.plain[span.start : span.end] for span in told.spans if span.style == DRAFTED]
    assert "".join(green) == "a b d"
    plain = Console(file=io.StringIO(), force_terminal=False)
    plain.print(told)
    assert "\x1b" not in plain.file.getvalue()  # type: ignore[attr-defined]


def test_a_round_without_its_pieces_is_not_split() -> None:
    told = coloured([TokenEvent(text="a b", token_ids=[1, 2], drafted=[True, False])])
    assert (told.plain, told.spans) == ("a b", [])
