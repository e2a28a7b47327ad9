"""The thread that keeps a worker's leases alive and its heartbeat fresh while the engine computes.

Invariant: it never waits for the engine; what it learns (fenced, cancel requested) it hands over through
`take_news`, and the engine's loop acts on it. If that loop has not turned for `stall_s`, nothing is renewed
any more: a stuck engine must lose its jobs like a dead one. Knows nothing of the engine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.broker.base import BrokerUnavailable, Lease, WorkerBroker

log = logging.getLogger("twigserve.worker")


@dataclass(frozen=True)
class Pace:
    renew_s: float
    heartbeat_s: float
    stall_s: float


class LeaseKeeper:
    def __init__(
        self,
        broker: WorkerBroker,
        heartbeat: Callable[[], None],
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._heartbeat = heartbeat
        self._pace = pace
        self._clock = clock
        self._lock = threading.Lock()
        self._held: set[Lease] = set()
        self._fenced: set[Lease] = set()
        self._cancelled: set[Lease] = set()
        self._last_turn = clock()
        self._next_heartbeat = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def turn(self) -> None:
        """The engine's loop turned."""
        self._last_turn = self._clock()

    def hold(self, lease: Lease) -> None:
        with self._lock:
            self._held.add(lease)

    def drop(self, lease: Lease) -> None:
        with self._lock:
            for leases in (self._held, self._fenced, self._cancelled):
                leases.discard(lease)

    def take_news(self) -> tuple[set[Lease], set[Lease]]:
        """(fenced, cancel requested) since the last call."""
        with self._lock:
            news = self._fenced, self._cancelled
            self._fenced, self._cancelled = set(), set()
        return news

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
            except BrokerUnavailable as error:
                log.warning("leases not renewed", extra={"error": str(error)})
            except Exception:  # this thread must outlive its own defects, or every lease lapses
                log.exception("lease keeper failed")
            self._stop.wait(min(self._pace.renew_s, self._pace.heartbeat_s))

    def tick(self) -> None:
        if self._clock() - self._last_turn > self._pace.stall_s:
            log.error("the engine is stuck: leases and heartbeat are let go")
            return
        with self._lock:
            held = list(self._held)
        fenced, cancelled = self._broker.renew(held)
        with self._lock:
            self._fenced |= self._held.intersection(fenced)
            self._cancelled |= self._held.intersection(cancelled)
            self._held.difference_update(fenced)
        if self._clock() >= self._next_heartbeat:
            self._next_heartbeat = self._clock() + self._pace.heartbeat_s
            self._heartbeat()
