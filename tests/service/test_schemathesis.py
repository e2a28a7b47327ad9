"""Requests generated from `/openapi.json` against the real application: nothing undocumented comes back.

The worker is real but for its engine. Derandomized and bounded in time: a slow machine tries fewer.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import time
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.gateway_fixture import Live
from tests.service.stub_engine import StubEngine
from tests.service.test_describe import PNG64
from tests.service.test_describe_stub import ready, stub  # noqa: F401
from tests.service.test_jobs import ended, start

# Most of schemathesis is loaded when it is first used, here by another thread, and pytest parses what a
# plugin loads: where the first thread parses something then, as a traceback does, Python 3.11 breaks with
# "AST constructor recursion depth mismatch". So it is loaded before there are threads.
for package in (
    "schemathesis.core",
    "schemathesis.generation",
    "schemathesis.specs",
    "schemathesis.transport",
    "hypothesis.strategies",
):
    for part in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(part.name)

BUDGET_S = 30.0
EXAMPLES = 25
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
QUICK = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def try_operation(operation: Any, job_id: str, until: float) -> list[int]:
    """The statuses that came back."""
    seen: list[int] = []

    @QUICK
    @given(case=operation.as_strategy(), helped=st.booleans())
    def run(case: Any, helped: bool) -> None:
        if seen and time.monotonic() > until:
            return
        if helped:  # what no generator finds by itself
            if "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = job_id
            if (
                isinstance(case.body, dict)
                and "image" in case.body
                and case.media_type != "multipart/form-data"
            ):
                case.body["image"] = PNG64
        response = case.call(timeout=60)
        # 504: the client itself gave it some milliseconds.
        assert response.status_code < 500 or response.status_code in (503, 504), (
            case.as_curl_command(),
            response.text,
        )
        case.validate_response(response, checks=CHECKS)
        seen.append(response.status_code)

    run()
    return seen


async def test_nothing_undocumented(live: Live, ready: httpx.AsyncClient, stub: StubEngine) -> None:  # noqa: F811
    load_all_checks()
    job = await ended(ready, await start(ready))
    schema = await asyncio.to_thread(schemathesis.openapi.from_url, live.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert operations
    began, seen = time.monotonic(), set[int]()
    for number, operation in enumerate(operations, start=1):
        until = began + BUDGET_S * number / len(operations)
        tried = await asyncio.to_thread(try_operation, operation, job["id"], until)
        assert tried, operation.label
        seen |= set(tried)
    assert {200, 400} <= seen  # it reached the answer, and was refused
