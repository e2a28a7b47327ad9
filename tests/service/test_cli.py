"""The commands' edges: help, probes, and errors that are one line."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.launcher import Launcher, ServePlan
from service.settings import WorkerSettings

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


@pytest.mark.parametrize(
    ("typed", "offered"), [("twigserve desc", "describe"), ("twigserve describe --qua", "--quality")]
)
def test_the_shell_completes_commands_and_options(typed: str, offered: str):
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    environment = os.environ | {"_TWIGSERVE_COMPLETE": "complete_bash"} | asked
    code = "from service.cli import app; app(prog_name='twigserve')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert offered in done.stdout.split()


def test_serve_hands_its_workers_what_it_was_told(monkeypatch: pytest.MonkeyPatch):
    plans: list[ServePlan] = []
    monkeypatch.setattr(Launcher, "run", lambda launcher: plans.append(launcher._plan) or 0)
    model = ["--model", "a", "--twig", "b", "--device", "cuda", "--fork-layer", "2", "--max-batch", "3"]
    assert run(app, ["serve", "--workers", "2", *model]).exit_code == 0
    (plan,) = plans
    assert plan.workers == 2
    assert set(pairwise(model)) <= set(pairwise(plan.worker_command))


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


def test_a_probe_of_something_else_says_so(repository: Path):
    """It was a traceback."""
    folder = functools.partial(SimpleHTTPRequestHandler, directory=repository / "docs")
    with ThreadingHTTPServer(("127.0.0.1", 0), folder) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        result = run(app, ["check", "worker", "--url", f"http://127.0.0.1:{other.server_port}/"])
        other.shutdown()
    assert result.exit_code == 1
    assert "is not a worker's" in result.output


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_one_line(device: str):
    result = run(app, ["worker", "--device", device, "--metrics-port", "0"])
    assert result.exit_code == 2
    assert f"'{device}'" in result.output
    assert result.output.count("\n") == 1


def test_a_model_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def too_large(_settings: WorkerSettings) -> None:
        raise RuntimeError("unable to mmap 28 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr("service.worker.load_engine", too_large)
    result = run(app, ["worker", "--metrics-port", "0"])
    assert result.exit_code == 2
    assert "embedded does not fit into the memory of cpu" in result.output


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIGSERVE_GATEWAY_PORT", "no number")
    result = run(app, ["gateway"])
    assert result.exit_code == 2
    assert "port (TWIGSERVE_GATEWAY_PORT): " in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("command", [["serve"], ["serve", "--port", "{there}"]])
def test_serve_listens_where_options_or_the_environment_say(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
):
    """The environment was checked, and not heeded."""
    plans: list[ServePlan] = []
    monkeypatch.setattr(Launcher, "run", lambda launcher: plans.append(launcher._plan) or 0)
    monkeypatch.setenv("TWIGSERVE_GATEWAY_PORT", "8123")
    monkeypatch.setenv("TWIGSERVE_GATEWAY_HOST", "127.0.0.2")
    assert run(app, [word.replace("{there}", "8124") for word in command]).exit_code == 0
    assert (plans[0].host, plans[0].port) == ("127.0.0.2", 8124 if "--port" in command else 8123)


def test_one_name_for_two_workers_is_refused(monkeypatch: pytest.MonkeyPatch):
    """They took each other's place, and the service was never ready."""
    monkeypatch.setenv("TWIGSERVE_WORKER_WORKER_ID", "one")
    monkeypatch.setattr(Launcher, "run", lambda launcher: 0)
    result = run(app, ["serve", "--workers", "2"])
    assert result.exit_code == 2
    assert "TWIGSERVE_WORKER_WORKER_ID" in result.output


def test_a_taken_metrics_port_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch):
    """It was told after, and without the port."""
    monkeypatch.setattr("service.worker.load_engine", lambda _settings: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run(app, ["worker", "--metrics-port", port])
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.output
    assert "metrics_port" in result.output


def test_a_gateway_without_a_temporary_folder_does_not_start(monkeypatch: pytest.MonkeyPatch):
    """It was ready, and answered 500 to every picture."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr("service.draining.DrainingServer.run", lambda _server: pytest.fail("started"))
    result = run(app, ["gateway", "--port", "0"])
    assert result.exit_code == 2
    assert "temporary directory" in result.output


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path):
    result = run(app, ["worker", "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "nothing" in result.output
    assert "Traceback" not in result.output
