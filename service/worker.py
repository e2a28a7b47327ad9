"""The worker process: the engine behind a port, metrics, signals. The one module that imports `model`.

Invariant: `model`'s types end here; what goes on is in the service's own words (`running`, `protocol`).
Must not know: Redis, HTTP, how jobs are claimed (that is `worker_loop`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from prometheus_client import start_http_server

from model.card import ModelCard as EngineCard
from model.randomness import seed_of
from model.request import Request, RequestError, Result, SamplingParams, StepOutput, Turn
from service.broker.base import WorkerBroker
from service.broker.redis_worker import RedisWorkerBroker
from service.bundled import sample_pictures
from service.metrics import WorkerMetrics
from service.ports import port_problem
from service.protocol import DoneData, ErrorData, ImageRef, JobParams, ModelCard
from service.running import DraftCounts, EngineLoad, Progress, Refused, RunningJob
from service.settings import WorkerSettings
from service.stop_signals import on_stop
from service.tracing import job_tracing
from service.worker_loop import Worker

if TYPE_CHECKING:
    from model.engine import Engine as TwigEngine

VERIFY_TOKENS = 16  # of each answer at start-up: a fault in the rounds shows in the first few

log = logging.getLogger("twigserve.worker")


class VlmStats(Protocol):
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def kv_bytes_used(self) -> int: ...
    @property
    def kv_bytes_capacity(self) -> int: ...


class VlmEngine(Protocol):
    """What of `model.engine.Engine` the worker uses."""

    card: EngineCard

    def add(self, request: Request) -> str: ...
    def step(self) -> list[StepOutput]: ...
    def abort(self, request_id: str) -> None: ...
    def has_work(self) -> bool: ...
    def stats(self) -> VlmStats: ...


def load_engine(settings: WorkerSettings) -> TwigEngine:
    from model.engine import Engine as TwigEngine
    from model.engine import EngineConfig

    return TwigEngine.from_pretrained(
        settings.vlm,
        settings.twig,
        device=settings.device,
        dtype=settings.dtype,
        config=EngineConfig(
            max_batch=settings.max_batch,
            image_fit=settings.image_fit,
            max_image_tokens=settings.max_image_tokens,
            kv_cache_bytes=settings.kv_cache_bytes,
            threads=settings.threads,
            batch_invariant=settings.batch_invariant,
        ),
        fork_layer=settings.fork_layer,
        drop_layer=settings.drop_layer,
    )


class Engine:
    """The engine as the loop sees it (`running.EnginePort`)."""

    def __init__(self, engine: VlmEngine) -> None:
        self._engine = engine
        self._wants_map: set[str] = set()
        self.card = ModelCard.model_validate(engine.card.to_dict())

    def begin(self, job: RunningJob, images: Sequence[bytes | None]) -> None:
        params = job.claim.job.params
        try:
            self._engine.add(_request(job, params, images))
        except RequestError as error:
            kind, code = "invalid_request_error", "invalid_request"
            raise Refused(ErrorData(type=kind, message=str(error), code=code, param=error.param)) from error
        except Exception as error:
            log.exception("the engine could not take a job", extra=job.log_fields)
            data = ErrorData(message="The engine could not take the request.", code="engine_error")
            raise Refused(data) from error
        if params.token_map:
            self._wants_map.add(job.engine_id)

    def advance(self) -> list[Progress]:
        outputs = self._engine.step()
        batch_size = self._engine.stats().batch_size
        return [self._progress(output, batch_size) for output in outputs]

    def abort(self, engine_id: str) -> None:
        self._engine.abort(engine_id)

    def has_work(self) -> bool:
        return self._engine.has_work()

    def load(self) -> EngineLoad:
        stats = self._engine.stats()
        usage = stats.kv_bytes_used / max(1, stats.kv_bytes_capacity)
        return EngineLoad(stats.running, stats.waiting, stats.batch_size, usage)

    def _progress(self, output: StepOutput, batch_size: int) -> Progress:
        result, end = output.result, None
        if result is not None:
            end = self._end(result, batch_size)
            self._wants_map.discard(output.request_id)
        drafts = DraftCounts()
        if result is not None:
            drafts = DraftCounts(result.accepted_per_position, result.draft_stops)
        return Progress(
            output.request_id,
            output.text,
            output.token_ids,
            output.drafted,
            end,
            drafts,
            pieces=output.pieces,
        )

    def _end(self, result: Result, batch_size: int) -> DoneData | ErrorData:
        if result.finish_reason in ("abort", "error"):
            if result.finish_reason == "error":  # an abort is the loop's own doing, of a job it has let go
                fields = {"engine_id": result.request_id, "error": result.error}  # begins with the job's id
                log.error("request failed in the engine", extra=fields)
            return ErrorData(message="The engine could not finish the request.", code="engine_error")
        done = done_data(result, self.card.model_id, batch_size)
        if result.request_id not in self._wants_map:
            return done
        return done.model_copy(update=token_map_of(result, self.card.grid))


def load_proved(settings: WorkerSettings) -> TwigEngine:
    """`load_engine`, and where the settings say so no engine whose answers depend on how they are made."""
    try:
        engine = load_engine(settings)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise ValueError(
            f"{settings.vlm} does not fit into the memory of {settings.device}: {error}"
        ) from error
    if settings.verify:
        from model.examination import BATCH, examine

        checks = examine(engine, sample_pictures(), min(BATCH, settings.max_batch), VERIFY_TOKENS)
        for check in checks:
            log.info("verify", extra={"check": check.name, "ok": check.ok, "detail": check.detail})
        for check in checks:
            if not check.ok:
                raise ValueError(f"{settings.vlm} failed its verification: {check.name} – {check.detail}")
    return engine


def _out_of_memory(error: Exception) -> bool:
    """torch has a class for the GPU's memory alone."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or "allocate memory" in str(error)


def _leave_at_once(number: int, _frame: object) -> None:
    """While the engine loads there is nothing to give back, and no call of the loader has to be awaited."""
    with suppress(RuntimeError):  # the signal may have come in the middle of a line of the log
        log.info("worker left before it was ready", extra={"signal": signal.Signals(number).name})
    os._exit(0)


def run_worker(settings: WorkerSettings, load: Callable[[WorkerSettings], VlmEngine] = load_proved) -> None:
    """Returns when drained after a signal to stop; raises where the engine failed."""
    on_stop(_leave_at_once)
    if settings.metrics_port is not None:  # not only once the weights are loaded
        problem = port_problem(settings.metrics_host, settings.metrics_port)
        if problem is not None:
            raise OSError(f"the worker's metrics (metrics_host, metrics_port): {problem}")
    worker_id = settings.worker_id or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    engine = Engine(load(settings))
    metrics = WorkerMetrics(engine.card.layers)
    broker: WorkerBroker = RedisWorkerBroker(settings.redis, engine.card.model_id)
    tracing = job_tracing(settings.tracing, worker_id)
    worker = Worker(engine, broker, settings, worker_id, metrics, tracing)
    on_stop(lambda *_: worker.stop())
    server = None
    if settings.metrics_port is not None:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    try:
        worker.run()
    finally:
        broker.close()
        tracing.close()
        if server is not None:
            server.shutdown()
            server.server_close()


def _request(job: RunningJob, params: JobParams, images: Sequence[bytes | None]) -> Request:
    refs = job.claim.job.images
    return Request(
        prompt=job.claim.job.prompt,
        images=[_pixels(ref, raw) for ref, raw in zip(refs, images, strict=True)],
        sampling=SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            # The engine's own would follow its request id, which is another for each attempt.
            seed=seed_of(job.claim.job.id) if params.seed is None else params.seed,
            stop=params.stop,
            ignore_eos=params.ignore_eos,
        ),
        retained_tokens=params.retained_tokens,
        retained_share=params.retained_share,
        speculation=params.speculation,
        request_id=job.engine_id,
        resume_token_ids=job.resumed,
        history=tuple(Turn(turn.role, turn.text, turn.images) for turn in job.claim.job.history),
    )


def _pixels(image: ImageRef, raw: bytes | None) -> Any:
    """uint8 [H, W, 3], writable, as torch wants its memory."""
    if raw is None:
        raise ValueError("the image has expired")
    return np.frombuffer(bytearray(raw), np.uint8).reshape(image.height, image.width, 3)


def done_data(result: Result, model_id: str, batch_size: int) -> DoneData:
    return DoneData(
        text=result.text,
        token_ids=tuple(result.token_ids),
        finish_reason=result.finish_reason,
        model=model_id,
        prompt_tokens=result.prompt_tokens,
        image_tokens=result.image_tokens,
        kept_tokens=result.kept_tokens,
        retained_tokens=result.retained_tokens,
        draft_rounds=result.draft_rounds,
        draft_tokens=result.draft_tokens,
        accepted_tokens=result.accepted_tokens,
        batch_size=batch_size,
        queue_s=result.queue_s,
        encode_s=result.encode_s,
        prefill_s=result.prefill_s,
        decode_s=result.decode_s,
        ttft_s=result.ttft_s,
    )


def token_map_of(result: Result, grid: tuple[int, int]) -> dict[str, Any]:
    """The fields of DoneData that only who asked for the map is given. grid: the card's."""
    scores = None if result.token_scores is None else tuple(result.token_scores)
    # A map of several images, or of tiles, is one of patches only where they share a grid.
    grids = set(result.image_grids) or {grid}
    shared = grids.pop() if len(grids) == 1 else None
    return {"grid": shared, "kept_indices": tuple(result.kept_indices), "token_scores": scores}
