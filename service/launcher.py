"""`twigserve serve`: Redis, workers and a gateway on this machine, supervised as one service.

Invariant: nothing is announced before a request would be answered; a child that ends before that ends the
whole start with its reason; afterwards a crashed child is started again; on the way out everything that was
started is stopped, gateway first. Must not know: Redis's contents, what a worker does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.bundled import sample_pictures
from service.child import Child
from service.embedded_redis import EmbeddedRedis, NoRedisError
from service.ports import free_port, port_problem
from service.stop_signals import on_stop

log = logging.getLogger("twigserve.launcher")

_POLL_S = 0.2
_STOP_GRACE_S = 5.0


class StartError(RuntimeError):
    """The service did not come up; the message says which part."""


@dataclass(frozen=True)
class ServePlan:
    """Commands are prefixes to which the launcher appends options of `twigserve gateway` and `worker`.

    redis_args: how children are told of a given Redis (empty: their environment does); None starts our own.
    drain_s: how long gateway and workers may take to finish what runs.
    """

    gateway_command: tuple[str, ...]
    worker_command: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    redis_args: tuple[str, ...] | None = None
    ready_timeout_s: float = 300.0
    drain_s: float = 20.0
    samples: Path = field(default_factory=lambda: Path("docs/samples"))


# Where one can ask a server that listens on every address.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def _say(line: str) -> None:
    try:
        print(line, flush=True)  # whoever pipes us waits for these lines
    except OSError:  # nobody reads them any more, which is no reason to stop
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Launcher:
    def __init__(self, plan: ServePlan, say: Callable[[str], None] = _say) -> None:
        self._plan = plan
        self._say = say
        self._redis: EmbeddedRedis | None = None
        self._gateway: Child | None = None
        self._workers: list[Child] = []
        self._stopping = False  # no Event: its lock may be held by what the signal interrupts
        self._port = plan.port or free_port(plan.host)
        self._metrics_ports = [free_port("127.0.0.1") for _ in range(plan.workers)]

    @property
    def url(self) -> str:
        host = _LOOPBACK.get(self._plan.host, self._plan.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def worker_pids(self) -> list[int | None]:
        return [worker.pid for worker in self._workers]

    def stop(self) -> None:
        """Safe in a signal handler. Called again, what still runs is not waited for."""
        if self._stopping:
            for child in self._children():
                child.interrupt()
        self._stopping = True

    def run(self) -> int:
        on_stop(lambda *_: self.stop())
        try:
            self._start()
            self._wait_until_ready()
            self._supervise()
        except (StartError, NoRedisError, OSError) as error:
            log.error("twigserve serve failed: %s", error)
            return 1
        finally:
            self._shut_down()
        return 0

    def _start(self) -> None:
        # Somebody else's service at our port would be taken for our own.
        if (problem := port_problem(self._plan.host, self._port)) is not None:
            raise StartError(str(problem))
        redis_args = self._plan.redis_args
        if redis_args is None:
            self._redis = EmbeddedRedis()
            self._redis.start()
            redis_args = ("--redis-url", self._redis.url)
        for number, port in enumerate(self._metrics_ports):
            command = (*self._plan.worker_command, *redis_args, "--metrics-port", str(port))
            self._workers.append(Child(f"worker-{number}", command))
        urls = [part for url in self._metrics_urls() for part in ("--worker-metrics-url", url)]
        place = ("--host", self._plan.host, "--port", str(self._port))
        self._gateway = Child("gateway", (*self._plan.gateway_command, *redis_args, *place, *urls))
        for child in self._children():
            child.start()

    def _children(self) -> list[Child]:
        return [*self._workers, *([self._gateway] if self._gateway else [])]

    def _metrics_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/metrics" for port in self._metrics_ports]

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self._plan.ready_timeout_s
        while not self._stopping:
            if self._workers_ready() >= self._plan.workers:
                self._announce()
                return
            for child in self._children():
                if (code := child.exit_code()) is not None:
                    raise StartError(f"{child.name} ended with code {code} before it was ready")
            if time.monotonic() > until:
                raise StartError(f"not ready after {self._plan.ready_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _workers_ready(self) -> int:
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return 0
        return int(response.json().get("workers", 0)) if response.status_code == 200 else 0

    def _announce(self) -> None:
        picture = (sorted(self._plan.samples.glob("*.png")) or sample_pictures())[0]
        self._say(f"twigserve is ready at {self.url}  (API: {self.url}/docs, Ctrl-C stops it)")
        for url in (f"{self.url}/metrics", *self._metrics_urls()):
            self._say(f"  metrics: {url}")
        self._say(f"\n  curl -s {self.url}/v1/describe -F image=@{picture}\n")

    def _supervise(self) -> None:
        while not self._stopping:
            if self._redis is not None and not self._redis.running():
                log.error("redis died; what was queued is lost")
                self._redis.start()
            for child in self._children():
                child.revive()
            time.sleep(_POLL_S)

    def _shut_down(self) -> None:
        """The gateway first, so that its open requests are still answered by the workers."""
        for group in ([self._gateway] if self._gateway else [], self._workers):
            for child in group:
                child.terminate()
            for child in group:
                child.wait(self._plan.drain_s + _STOP_GRACE_S)
        if self._redis is not None:
            self._redis.stop()
