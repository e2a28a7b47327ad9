"""A gateway that leaves: what cannot end in time gets its one terminal answer, and the job goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import httpx
import pytest

from service.settings import GatewaySettings
from tests.service.gateway_fixture import Live, eventually, on_a_port
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG64, error_of
from tests.service.test_describe_live import parse

URL = "/v1/describe"
BODY = {"image": PNG64}


async def test_a_released_stream_ends_in_one_error_and_goes_on_elsewhere(
    live: Live, settings: GatewaySettings, worker: ScriptedWorker
) -> None:
    """It was cut without an end, and its job was cancelled."""
    worker.hold()
    async with (
        httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        client.stream("POST", URL, json=BODY | {"stream": True}) as response,
    ):
        await eventually(lambda: len(worker.jobs) == 1)
        live.gateway.drain()
        live.gateway.release()
        sent = [event async for event in parse(response.aiter_lines()) if event.event]
    assert [event.event for event in sent] == ["error"]
    assert sent[0].data["error"]["code"] == "gateway_stopping"
    where = response.headers["Content-Location"]
    assert where in sent[0].data["error"]["message"]
    worker.resume()
    async with on_a_port(settings) as other, httpx.AsyncClient(base_url=other.url, timeout=60) as client:
        whole = await client.get(where + "/events")
        assert "event: done" in whole.text
    assert worker.cancelled == []


async def test_a_released_request_is_told_where_its_answer_will_be(
    live: Live, worker: ScriptedWorker
) -> None:
    worker.hold()
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        asking = asyncio.create_task(client.post(URL, json=BODY))
        await eventually(lambda: len(worker.jobs) == 1)
        live.gateway.drain()
        live.gateway.release()
        response = await asking
        error = error_of(response, 503)
        assert error["code"] == "gateway_stopping"
        assert worker.jobs[0].id in error["message"]
        assert response.headers["Retry-After"]
        assert error_of(await client.get("/readyz"), 503)["code"] == "gateway_stopping"
        assert (await client.get("/livez")).status_code == 200
        worker.resume()
        async with asyncio.timeout(60):
            where = f"/v1/jobs/{worker.jobs[0].id}"
            while (await client.get(where)).json()["status"] != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.usefixtures("heeds_hangup")
@pytest.mark.parametrize(
    ("number", "files"), [(signal.SIGTERM, ""), (signal.SIGHUP, ""), (signal.SIGTERM, "<&- >&-")]
)
def test_a_drained_gateway_ends_well_whatever_asked_it_to(number: signal.Signals, files: str) -> None:
    """A closed terminal cut it off; SIGTERM drained it and then looked like a crash. Where standard
    output was closed a socket took its place, and uvloop aborted."""
    env = os.environ | {"TWIGSERVE_REDIS_URL": "redis://127.0.0.1:9"}
    command = [
        "sh",
        "-c",
        f'exec "$@" {files}',
        "sh",
        sys.executable,
        "-m",
        "service.cli",
        "gateway",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Uvicorn running" in line:
                process.send_signal(number)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
