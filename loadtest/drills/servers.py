"""Real Redis servers, replicas and sentinels on loopback, to be killed, paused and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from service.child import spawn
from service.embedded_redis import find_server
from service.ports import free_port

START_S = 20.0
MASTER = "drill"


class Server:
    """One server process on a port of its own; `start` again keeps port and folder."""

    def __init__(self, folder: Path, name: str, options: Sequence[str]) -> None:
        self.port = free_port("127.0.0.1")
        self._folder = folder / f"{name}-{self.port}"
        self._folder.mkdir()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        fixed = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "")
        return [find_server(), *fixed, "--logfile", str(self._folder / "log"), *self._options]

    async def start(self) -> None:
        self._process = spawn(self.command())
        until = time.monotonic() + START_S
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                if time.monotonic() > until:
                    raise AssertionError(f"{self._folder.name} did not start")
                await asyncio.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=2.0)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(20)


def plain_redis(folder: Path, *options: str) -> Server:
    return Server(folder, "redis", ("--appendonly", "no", *options))


def persistent_redis(folder: Path) -> Server:
    return Server(folder, "redis", ("--appendonly", "yes", "--appendfsync", "everysec"))


def replica_of(master: Server, folder: Path) -> Server:
    options = (
        "--replicaof",
        f"127.0.0.1 {master.port}",
        "--appendonly",
        "no",
        "--repl-diskless-sync-delay",
        "0",
    )
    return Server(folder, "replica", options)


class Sentinel(Server):
    def __init__(self, folder: Path, master: Server, quorum: int) -> None:
        super().__init__(folder, "sentinel", ())
        lines = (
            f"port {self.port}",
            f"dir {self._folder}",
            f"logfile {self._folder / 'log'}",
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 10000",
        )
        self._conf = self._folder / "sentinel.conf"
        self._conf.write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [find_server(), str(self._conf), "--sentinel"]

    def others_known(self) -> int:
        with self.client() as client:
            state = client.sentinel_master(MASTER)
            return int(state["num-other-sentinels"]) if int(state["num-slaves"]) else -1


def sentinel_url(sentinels: Sequence[Sentinel]) -> str:
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    return f"redis+sentinel://{hosts}/{MASTER}/0"
