"""A gateway or worker with a fault built in: `python -m loadtest.drills.faulty [fault...] worker ...`.

--stub: the engine without a network; --step-s, --prefill-s: its pace. --clock-skew-s: this process's wall
clock. --die=before-finish|after-finish: it is killed at its first end of a job. --novel: what it writes has a
field from a later version; --from-the-future: of a wire version nobody here reads (its heartbeats or jobs).
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import service.protocol as protocol
from service.broker.base import Behind, Fenced, Parcel
from service.broker.redis_worker import RedisWorkerBroker


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--prefill-s", type=float, default=0.0)
    parser.add_argument("--clock-skew-s", type=float, default=0.0)
    parser.add_argument("--die", choices=("before-finish", "after-finish"))
    parser.add_argument("--novel", action="store_true")
    parser.add_argument("--from-the-future", action="store_true")
    return parser.parse_known_args(list(arguments))


def skew_clock(by_s: float) -> None:
    wall = time.time
    time.time = lambda: wall() + by_s


def speak_newer(*, unreadable: bool) -> None:
    """Everything encoded here has a field that no released reader knows."""
    encode = protocol.VersionedMessage.encode

    def newer(message: Any) -> str:
        if unreadable and not isinstance(message, protocol.Event):
            message = message.model_copy(update={"v": protocol.WIRE_VERSION + 1})
        return encode(message).removesuffix("}") + ',"novelty":{"a":[1]}}'

    protocol.VersionedMessage.encode = newer  # type: ignore[method-assign]


class DyingBroker(RedisWorkerBroker):
    when = ""

    def write(self, parcels: Sequence[Parcel]) -> list[bool | Fenced | Behind]:
        ends = any(event.terminal for _, events in parcels for event in events)
        if ends and self.when == "before-finish":
            os.kill(os.getpid(), signal.SIGKILL)
        answers = super().write(parcels)
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers


def main() -> None:
    faults, rest = parse(sys.argv[1:])
    if faults.clock_skew_s:
        skew_clock(faults.clock_skew_s)
    if faults.novel or faults.from_the_future:
        speak_newer(unreadable=faults.from_the_future)
    if rest[0] == "worker":
        spoil_worker(faults)
    from service.cli import app

    app(rest)


def spoil_worker(faults: argparse.Namespace) -> None:
    import service.worker

    if faults.die:
        DyingBroker.when = faults.die
        service.worker.RedisWorkerBroker = DyingBroker  # type: ignore[misc]
    if faults.stub:
        from tests.service.stub_engine import StubEngine

        load = lambda _settings: StubEngine(faults.step_s, faults.prefill_s)  # noqa: E731
        service.worker.run_worker = functools.partial(service.worker.run_worker, load=load)


if __name__ == "__main__":
    main()
