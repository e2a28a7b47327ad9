"""`/openapi.json`: unchanged unless meant, valid, and complete: every route, error and example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.schemas import DescribeBody
from service.schemas_batch import BatchBody
from service.schemas_chat import EXAMPLE, ChatBody
from service.schemas_jobs import JobObject
from service.settings import GatewaySettings
from tests.service.openapi_snapshot import SNAPSHOT, described

REFUSED = {400, 401, 403}
OPERATIONS = {
    ("/v1/describe", "post"): {200, 202, *REFUSED, 408, 409, 413, 415, 422, 429, 500, 503, 504},
    ("/v1/chat/completions", "post"): {200, *REFUSED, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504},
    ("/v1/jobs/{job_id}", "get"): {200, 401, 404, 503},
    ("/v1/jobs/{job_id}", "delete"): {200, 401, 404, 503},
    ("/v1/jobs/{job_id}/events", "get"): {200, 204, 400, 401, 404, 503},
    ("/v1/files", "post"): {200, 400, 401, 408, 413, 415, 429, 503},
    ("/v1/files/{file_id}", "get"): {200, 401, 404, 503},
    ("/v1/files/{file_id}", "delete"): {200, 401, 404, 503},
    ("/v1/files/{file_id}/content", "get"): {200, 401, 404, 503},
    ("/v1/batches", "post"): {200, 400, 401, 403, 404, 408, 413, 415, 429, 503},
    ("/v1/batches/{batch_id}", "get"): {200, 401, 404, 503},
    ("/v1/batches/{batch_id}/cancel", "post"): {200, 401, 404, 429, 503},
    ("/v1/models", "get"): {200, 401, 503},
    ("/v1/models/{model_id}", "get"): {200, 401, 404, 503},
    ("/livez", "get"): {200},
    ("/readyz", "get"): {200, 400, 503},
    ("/metrics", "get"): {200},
}


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return create_app(GatewaySettings()).openapi()


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_as_committed() -> None:
    """After a change that is meant: `python -m tests.service.openapi_snapshot`."""
    assert json.loads(json.dumps(described())) == json.loads(SNAPSHOT.read_text())


def test_every_status_of_every_route(api: dict[str, Any]) -> None:
    seen = {
        (path, method): {int(status) for status in op["responses"]} for path, method, op in operations(api)
    }
    assert seen == OPERATIONS


def test_one_error_shape(api: dict[str, Any]) -> None:
    for path, method, operation in operations(api):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                assert schema["$ref"] == "#/components/schemas/ErrorBody", (path, method, status)


def test_headers_of_responses(api: dict[str, Any]) -> None:
    for path, method, operation in operations(api):
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"], (path, method, status)
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503")), (
                path,
                method,
                status,
            )
    for path in ("/v1/describe", "/v1/chat/completions"):
        assert "Server-Timing" in api["paths"][path]["post"]["responses"]["200"]["headers"]


def test_routes_have_a_summary_and_a_tag(api: dict[str, Any]) -> None:
    for path, method, operation in operations(api):
        assert operation["summary"], (path, method)
        assert operation["tags"], (path, method)


def test_bodies_list_every_field(api: dict[str, Any]) -> None:
    bodies = {"/v1/describe": DescribeBody, "/v1/chat/completions": ChatBody, "/v1/batches": BatchBody}
    for path, model in bodies.items():
        content = api["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        assert set(schema["properties"]) == set(model.model_fields)
        assert schema["additionalProperties"] is False
        assert "$ref" not in json.dumps(content)  # `#/$defs` means nothing inside OpenAPI


def test_examples_are_accepted_by_their_models(api: dict[str, Any]) -> None:
    ChatBody.model_validate(EXAMPLE)
    job = api["components"]["schemas"]["JobObject"]
    assert set(job["properties"]) == set(JobObject.model_fields)
    assert job["properties"]["status"]["examples"] == ["completed"]
