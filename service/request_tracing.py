"""OpenTelemetry traces of requests: the gateway's one span, whose `traceparent` the job carries on.

Invariant: without an endpoint nothing of OpenTelemetry is imported and nothing is recorded.
Must not know: what a request asks for, the queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from service.errors import as_api_error
from service.settings import TracingSettings
from service.tracing import TRACEPARENT, Traced, provider_of


class RequestTracing(Protocol):
    def request(
        self, method: str, path: str, headers: Mapping[str, str], request_id: str
    ) -> contextlib.AbstractContextManager[str]:
        """Around the request; gives the `traceparent` for its job, '' where none is kept."""

    def close(self) -> None:
        """Sends what is unsent."""


class NoRequestTracing:
    def request(self, *_: object, **__: object) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext("")

    def close(self) -> None:
        pass


def request_tracing(settings: TracingSettings) -> RequestTracing:
    if settings.endpoint is None:
        return NoRequestTracing()
    return OtlpRequestTracing(provider_of(settings, "gateway"))


class OtlpRequestTracing(Traced):
    @contextlib.contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[str]:
        from opentelemetry import trace

        parent = self._propagator.extract({TRACEPARENT: headers.get(TRACEPARENT, "")})
        about = {"http.request.method": method, "http.route": path, "twigserve.request_id": request_id}
        span = self._tracer.start_span(f"{method} {path}", parent, trace.SpanKind.SERVER, about)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        try:
            yield carrier.get(TRACEPARENT, "")
        except Exception as exc:
            error = as_api_error(exc)
            span.set_attributes({"error.type": error.code, "http.response.status_code": error.status})
            if error.status >= 500:
                span.set_status(trace.StatusCode.ERROR, error.message)
            raise
        finally:
            span.end()
