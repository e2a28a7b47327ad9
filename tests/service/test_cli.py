"""The commands' edges: help, probes, and errors that are one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli import app

run = CliRunner().invoke


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["gateway"],
        ["worker"],
        ["describe"],
        ["doctor"],
        ["bench"],
        ["verify"],
        ["check", "gateway"],
        ["check", "worker"],
    ],
)
def test_every_command_has_help(command: list[str]):
    result = run(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--help" in result.output


def test_the_commands_are_read_without_torch_and_fastapi():
    """So that `--help` and the probes are quick, and a gateway image needs no torch."""
    code = "import sys, service.cli; print([m for m in ('torch', 'fastapi', 'redis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("what", ["gateway", "worker"])
def test_a_probe_of_nothing_fails(what: str):
    result = run(app, ["check", what, "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "ConnectError" in result.output


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIGSERVE_GATEWAY_PORT", "no number")
    result = run(app, ["gateway"])
    assert result.exit_code == 2
    assert "port" in result.output
    assert "Traceback" not in result.output


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path):
    result = run(app, ["worker", "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "nothing" in result.output
    assert "Traceback" not in result.output
