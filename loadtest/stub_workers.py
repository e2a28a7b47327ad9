"""Workers whose engine answers at once: `python -m loadtest.stub_workers COUNT`, until SIGTERM.

What they cost is the queue alone. The card asks for pictures of the embedded model's size. The workers are
threads of one process: the interpreter's lock is then part of what a table of worker counts shows.
"""

from __future__ import annotations

import dataclasses
import signal
import sys

from model.card import ImageSpec
from service.settings import RedisSettings, WorkerSettings
from tests.service.stub_engine import StubEngine
from tests.service.worker_fixture import RunningWorker

PICTURE_PX = 192
AS_SHIPPED = ("poll_s", "heartbeat_s", "heartbeat_ttl_s", "drain_s", "max_batch")


def main(count: int) -> None:
    redis = RedisSettings()
    size = ImageSpec(PICTURE_PX, PICTURE_PX, "stretch")
    StubEngine.card = dataclasses.replace(StubEngine.card, image=size)
    shipped = WorkerSettings(redis=redis)
    settings = {name: getattr(shipped, name) for name in AS_SHIPPED}
    workers = [RunningWorker(redis, metrics_port=None, **settings).start() for _ in range(count)]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    for worker in workers:
        worker.worker.stop()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(int(sys.argv[1]))
