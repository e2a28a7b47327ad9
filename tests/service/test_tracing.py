"""Traces over OTLP to a receiver of the test: one a request, from its caller to the decode phase."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.request_tracing import request_tracing
from service.settings import GatewaySettings, RedisSettings, TracingSettings
from service.tracing import job_tracing
from tests.service.gateway_fixture import Live, on_a_port
from tests.service.test_describe import error_of, post_form
from tests.service.worker_fixture import RunningWorker

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "a prompt that stays here"


class Receiver:
    """Takes OTLP over HTTP. spans: name -> (service, span)."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self) -> dict[str, tuple[str, Any]]:
        found = {}
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = attributes(resource.resource)["service.name"]
                for scope in resource.scope_spans:
                    found |= {span.name: (service, span) for span in scope.spans}
        return found


def attributes(of: Any) -> dict[str, Any]:
    values = {item.key: item.value for item in of.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.close()


async def traced_run(receiver: Receiver, settings: GatewaySettings, **fields: Any) -> httpx.Response:
    """One request through a gateway and a worker that trace; both have sent everything by its end."""
    tracing = TracingSettings(endpoint=receiver.endpoint)
    jobs = job_tracing(tracing, "w")
    worker = RunningWorker(settings.redis, tracing=jobs).start()
    try:
        async with on_a_port(settings.model_copy(update={"tracing": tracing})) as live:
            return await ask(live, **fields)
    finally:
        worker.worker.stop()
        worker.join()
        worker.broker.close()
        jobs.close()


async def ask(live: Live, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        while (await client.get("/readyz")).status_code != 200:
            pass
        client.headers["traceparent"] = f"00-{TRACE_ID}-{CALLER}-01"
        return await post_form(client, **fields)


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_one_trace_from_the_caller_to_the_decode(
    receiver: Receiver, settings: GatewaySettings, stream: str
) -> None:
    response = await traced_run(receiver, settings, prompt=SECRET, max_tokens=9, stream=stream)
    assert response.status_code == 200, response.text
    spans = receiver.spans()
    ours = {name: service for name, (service, _) in spans.items()}
    assert ours == {"POST /v1/describe": "twigserve-gateway"} | dict.fromkeys(
        ("queue", "chat stub", "encode", "prefill", "decode"), "twigserve-worker"
    )
    assert {span.trace_id.hex() for _, span in spans.values()} == {TRACE_ID}
    request, chat = spans["POST /v1/describe"][1], spans["chat stub"][1]
    assert request.parent_span_id.hex() == CALLER
    assert {spans[name][1].parent_span_id for name in ("queue", "chat stub")} == {request.span_id}
    assert {spans[name][1].parent_span_id for name in ("encode", "prefill", "decode")} == {chat.span_id}
    said = attributes(chat)
    assert (said["gen_ai.operation.name"], said["gen_ai.request.model"]) == ("chat", "stub")
    assert (said["gen_ai.request.max_tokens"], said["gen_ai.usage.output_tokens"]) == (9, 9)
    assert said["gen_ai.usage.input_tokens"] == 21
    assert said["twigserve.request_id"] == attributes(request)["twigserve.request_id"]
    for _, span in spans.values():
        assert request.start_time_unix_nano <= span.end_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert not any(SECRET.encode() in body for body in receiver.bodies)


async def test_errors_show(receiver: Receiver, settings: GatewaySettings) -> None:
    error_of(await traced_run(receiver, settings, prompt="refuse this"), 400)
    spans = receiver.spans()
    assert attributes(spans["POST /v1/describe"][1])["http.response.status_code"] == 400
    assert attributes(spans["chat stub"][1])["error.type"] == "invalid_request"
    assert spans["chat stub"][1].status.message == "the prompt is too long"


async def test_an_untraced_caller_is_not_traced(receiver: Receiver, redis_settings: RedisSettings) -> None:
    """The caller's decision not to sample holds."""
    tracing = request_tracing(TracingSettings(endpoint=receiver.endpoint))
    for flags in ("00", "01"):
        with tracing.request("POST", "/", {"traceparent": f"00-{TRACE_ID}-{CALLER}-{flags}"}, "r") as carried:
            assert carried.startswith(f"00-{TRACE_ID}-")
            assert carried.endswith(flags)
    tracing.close()
    assert len(receiver.spans()) == 1


def test_nothing_is_imported_when_off() -> None:
    program = """
import sys
from service.app import create_app
from service.settings import GatewaySettings, TracingSettings
from service.tracing import job_tracing
create_app(GatewaySettings())
job_tracing(TracingSettings(), "w")
OURS = ("opentelemetry.sdk.trace", "opentelemetry.exporter")  # the API itself is FastAPI's to import
print(*[name for name in sys.modules if name.startswith(OURS)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
