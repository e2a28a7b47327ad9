"""OpenTelemetry traces of jobs: their time in queue and worker, below the gateway's span (`request_tracing`).

A job carries `traceparent` (W3C Trace Context), so both sides report to one trace. The spans are made when
the job has ended, from the times it reports anyway. Names and attributes are those of OpenTelemetry's GenAI
conventions where they have one. Never in a span: prompts, texts, pictures, keys.
Invariant: without an endpoint nothing of OpenTelemetry is imported and nothing is recorded.
Must not know: HTTP, Redis.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from service.protocol import DoneData, ErrorData
from service.running import RunningJob
from service.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = "traceparent"
OPERATION = "chat"
NS_PER_S = 1_000_000_000


class JobTracing(Protocol):
    def finished(self, job: RunningJob) -> None:
        """The terminal event is the job's last."""

    def close(self) -> None: ...


class NoTracing:
    def finished(self, job: RunningJob) -> None:
        pass

    def close(self) -> None:
        pass


NO_TRACING = NoTracing()


def job_tracing(settings: TracingSettings, worker_id: str) -> JobTracing:
    return (
        NO_TRACING if settings.endpoint is None else _JobTracing(provider_of(settings, "worker", worker_id))
    )


def provider_of(settings: TracingSettings, component: str, instance: str | None = None) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as missing:
        raise ImportError("tracing needs the extra: pip install 'twigserve[tracing]'") from missing
    about = {"service.name": f"twigserve-{component}", "service.version": version("twigserve")}
    if instance is not None:
        about["service.instance.id"] = instance
    sampler = ParentBasedTraceIdRatio(settings.sample_ratio)
    provider = TracerProvider(resource=Resource.create(about), sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    return provider


class Traced:
    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("twigserve")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        self._provider.shutdown()


class _JobTracing(Traced):
    def finished(self, job: RunningJob) -> None:
        from opentelemetry import trace

        parent = self._propagator.extract({TRACEPARENT: job.claim.job.traceparent})
        self._child("queue", parent, job.began_at - job.queue_s, job.began_at)
        span = self._tracer.start_span(
            f"{OPERATION} {job.claim.job.model}",
            parent,
            trace.SpanKind.CONSUMER,
            _asked(job),
            start_time=_ns(job.began_at),
        )
        end = job.outbox[-1]
        if end.type == "done":
            done = DoneData.model_validate(end.data)
            span.set_attributes(_answered(done))
            self._phases(job, done, trace.set_span_in_context(span))
        else:
            error = ErrorData.model_validate(end.data)
            span.set_attribute("error.type", error.code or error.type)
            span.set_status(trace.StatusCode.ERROR, error.message)
        span.end()

    def _phases(self, job: RunningJob, done: DoneData, parent: Any) -> None:
        at_s = job.began_at + max(0.0, done.queue_s - job.queue_s)
        for name in ("encode", "prefill", "decode"):
            until_s = at_s + getattr(done, f"{name}_s")
            self._child(name, parent, at_s, until_s)
            at_s = until_s

    def _child(self, name: str, parent: Any, start_s: float, end_s: float) -> None:
        span = self._tracer.start_span(name, parent, start_time=_ns(start_s))
        span.end(_ns(end_s))


def _asked(job: RunningJob) -> dict[str, Any]:
    sent, params = job.claim.job, job.claim.job.params
    return {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": "twigserve",
        "gen_ai.request.model": sent.model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.response.id": sent.id,
        "twigserve.request_id": sent.request_id,
        "twigserve.attempt": job.lease.attempt,
    }


def _answered(done: DoneData) -> dict[str, Any]:
    return {
        "gen_ai.response.model": done.model,
        "gen_ai.response.finish_reasons": (done.finish_reason,),
        "gen_ai.usage.input_tokens": done.prompt_tokens,
        "gen_ai.usage.output_tokens": len(done.token_ids),
        "twigserve.image_tokens": done.image_tokens,
        "twigserve.retained_image_tokens": done.retained_tokens,
        "twigserve.draft_tokens": done.draft_tokens,
        "twigserve.accepted_draft_tokens": done.accepted_tokens,
    }


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
