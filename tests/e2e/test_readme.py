"""Every command of the README and of the guide's first pages runs: read from the pages themselves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service_process import ROOT, ServiceProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "docs/index.md", "docs/command-line.md")
DEFAULT_URL = "http://127.0.0.1:8000"
# Checkpoints that a reader has and this repository has not.
ELSEWHERE = "/models/"
# Run by the test session itself, by the gate, or too long for a test; each only has to exist.
RULES = {
    "make test",
    "make check",
    "make docs",
    "make bench",
    "make train",
    "make data",
    "make image",
    "make fmt",
}


def commands() -> list[str]:
    """The lines after a `$` in console blocks, without their trailing comments; each once."""
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    ]
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return list(dict.fromkeys(line.split("  #")[0].strip() for line in lines))


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # `doctor` looks at the port; somebody may have the default one.
    return os.environ | {"PATH": path, "TWIGSERVE_GATEWAY_PORT": "0"}


class MakeServe(ServiceProcess):
    """`make serve` as the README has it, on a free port and in the venv that is there already."""

    def __init__(self) -> None:
        super().__init__(ready_timeout_s=180)
        self.command = ["make", "serve", "ARGS=--port 0", "VENV=" + str(Path(sys.executable).parents[1])]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    python = Path(sys.executable)
    mark = python.parents[1] / ".installed"
    if not mark.exists():
        pytest.skip("the tests run outside an environment that `make install` made")
    with MakeServe() as service:
        yield service.url


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


def test_the_first_screen_has_the_two_commands() -> None:
    first = "\n".join(README.splitlines()[:40])
    assert "make serve" in first
    assert "make test" in first
    assert 'src="docs/samples/' in first


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ") and c != "make serve"])
def test_make_rules_exist(command: str) -> None:
    assert command in RULES
    assert run(f"make --dry-run {shlex.quote(command.split()[1])}").returncode == 0


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("curl ")])
def test_curl_answers(command: str, url: str) -> None:
    done = run(command.replace(DEFAULT_URL, url))
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith('{"error"'), done.stdout
    assert "event: error" not in done.stdout
    assert len(done.stdout) > 100


def test_the_first_answer_is_what_the_readme_shows(url: str) -> None:
    """Caught once: newer weights called the rose large."""
    command = next(command for command in commands() if command.startswith("curl "))
    quoted = " ".join(line[2:] for line in README.splitlines() if line.startswith("> "))
    assert json.loads(run(command.replace(DEFAULT_URL, url)).stdout)["text"] == quoted


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.startswith(("twigserve ", "cat ")) and ELSEWHERE not in c]
)
def test_commands_run(command: str, url: str) -> None:
    done = run(command.replace(DEFAULT_URL, url))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_nothing_else_is_promised() -> None:
    """A command of a kind that no test above runs would go unchecked."""
    known = ("make ", "curl ", "twigserve ", "cat ")
    assert [c for c in commands() if not c.startswith(known)] == []
