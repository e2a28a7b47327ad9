"""The worker loop in threads of the test process, with the stub engine, on the test's own queue."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from service.broker.redis import RedisWorkerBroker
from service.metrics import WorkerMetrics
from service.protocol import ImageRef, Job, JobParams
from service.settings import RedisSettings, WorkerSettings
from service.tracing import NO_TRACING, JobTracing
from service.worker import Engine
from service.worker_loop import Worker
from tests.service.stub_engine import StubEngine


class RunningWorker:
    """A worker in a thread; `join` gives back what its `run` raised."""

    def __init__(
        self, redis: RedisSettings, step_s: float = 0.0, tracing: JobTracing = NO_TRACING, **overrides: Any
    ) -> None:
        quick = {"poll_s": 0.1, "heartbeat_s": 0.1, "heartbeat_ttl_s": 10.0, "drain_s": 30.0, "max_batch": 4}
        self.stub = StubEngine(step_s)
        self.id = f"w-{uuid.uuid4().hex[:6]}"
        self.metrics = WorkerMetrics(self.stub.card.layers)
        self.broker = RedisWorkerBroker(redis, self.stub.card.model_id)
        settings = WorkerSettings(redis=redis, **(quick | overrides))
        self.worker = Worker(Engine(self.stub), self.broker, settings, self.id, self.metrics, tracing)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:
            self.error = error

    def start(self) -> RunningWorker:
        self._thread.start()
        return self

    def join(self, timeout_s: float = 40.0) -> BaseException | None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the worker did not leave"
        return self.error

    def alive(self) -> bool:
        return self._thread.is_alive()

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value("twigvlm_" + name, labels) or 0.0


@contextlib.contextmanager
def running_worker(
    redis: RedisSettings, step_s: float = 0.0, *, waiting: int = 0, **overrides: Any
) -> Iterator[RunningWorker]:
    worker = RunningWorker(redis, step_s, **overrides)
    worker.stub.waiting = waiting
    worker.start()
    try:
        yield worker
    finally:
        worker.worker.stop()
        worker.join()
        worker.broker.close()


def make_job(prompt: str = "Describe the image.", max_tokens: int = 8, **fields: Any) -> Job:
    params = fields.pop("params", {})
    return Job(
        id=uuid.uuid4().hex,
        created_at=time.time(),
        prompt=prompt,
        params=JobParams(max_tokens=max_tokens, **params),
        **fields,
    )


PICTURE = bytes(range(48))
PICTURE_REF = ImageRef(sha256="picture", height=4, width=4)
