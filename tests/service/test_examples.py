"""The guide's examples, run as they stand against a gateway on a port with a scripted worker."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.e2e.service_process import ROOT
from tests.service.gateway_fixture import Live
from tests.service.scripted_worker import WORDS, ScriptedWorker
from tests.service.test_describe import PNG

EXAMPLES = ROOT / "docs/examples"
PICTURE = str(ROOT / "docs/samples/castle.png")
TEXT = "".join(WORDS)


async def run(command: list[str], **environment: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_curl(live: Live, worker: ScriptedWorker) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    said = await run(["bash", str(EXAMPLES / "describe.sh"), PICTURE], TWIGSERVE_URL=live.url)
    assert said.count(f'"text": "{TEXT}"') + said.count(f'"text":"{TEXT}"') == 3
    assert said.count("event: done") == 2
    assert len(worker.jobs) == 3


@pytest.mark.parametrize(("name", "answers"), [("client.py", 3), ("openai_client.py", 1)])
async def test_python(live: Live, worker: ScriptedWorker, name: str, answers: int) -> None:
    said = await run([sys.executable, str(EXAMPLES / name), live.url, PICTURE])
    assert said.count(TEXT) == answers
    assert len(worker.jobs) == answers


@pytest.fixture
def small_pictures(tmp_path: Path) -> list[str]:
    """The gateway of the tests takes only small files of requests."""
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(PNG)
    return [str(path) for path in paths]


async def test_a_batch(live: Live, worker: ScriptedWorker, small_pictures: list[str]) -> None:
    said = await run([sys.executable, str(EXAMPLES / "batch.py"), live.url, *small_pictures])
    assert said.splitlines() == [f"{picture} {TEXT}" for picture in small_pictures]


def test_the_guide_names_no_option_that_is_not_there() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    lines = [line for page in pages for line in page.read_text().replace("\\\n", " ").splitlines()]
    named = [found for line in lines for found in re.findall(r"\btwigserve ([a-z]+)((?: [^|`]*)?)", line)]
    assert {command for command, _ in named} >= {"describe", "doctor", "worker", "serve"}
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for command, rest in named:
        options = set(re.findall(r"(?<=\s)--[a-z-]+", rest))
        if command not in known or not options:
            continue
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert {option for option in options if option not in shown} == set(), command


def test_every_page_of_the_guide_builds_strictly(tmp_path: Path) -> None:
    """`make docs`, wherever the `docs` extra is installed."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (pip install -e '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "reference/api/index.html").read_text()
    assert "POST /v1/describe" in api
    assert "TWIGSERVE_GATEWAY_PORT" in (tmp_path / "reference/configuration/index.html").read_text()
    shown = "".join((tmp_path / page / "index.html").read_text() for page in ("clients", "batches"))
    text = unescape(re.sub(r"<[^>]+>", "", shown))
    for example in EXAMPLES.iterdir():
        assert example.read_text().strip() in text, "ruff once broke the lines that include them"
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert not [page for page in pages if "<code>flowchart" in page], "Mermaid needs an outside script"
    outside = {url for page in pages for url in re.findall(r'(?:src|srcset)="(https?:[^"]+)"', page)}
    assert outside == set()
