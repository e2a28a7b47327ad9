"""Every way out of the gateway has the one error shape and a request id."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import ApiError, BadField, TooBusy, as_api_error, install_handlers
from service.middleware import RequestId
from service.shortcut import Shortcut


def leaves(kind: type[ApiError]) -> list[type[ApiError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


def app_raising(error: Exception) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def fail(request: Request) -> Response:
        raise error

    app.add_middleware(Shortcut, posts={"/": fail})
    app.add_middleware(RequestId)
    install_handlers(app)
    return app


async def answer_to(error: Exception, method: str = "GET") -> httpx.Response:
    """GET goes through the router, POST past it."""
    transport = httpx.ASGITransport(app_raising(error), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, "/", headers={"X-Request-ID": "r-1"})


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", leaves(ApiError), ids=lambda kind: kind.__name__)
async def test_every_leaf_of_the_tree(kind: type[ApiError], method: str) -> None:
    error = BadField("seed", "what was wrong") if kind is BadField else kind("what was wrong", param="seed")
    response = await answer_to(error, method)
    assert response.status_code == kind.status
    assert response.headers["X-Request-ID"] == "r-1"
    assert response.json() == {
        "error": {"message": "what was wrong", "type": kind.kind, "code": kind.code, "param": "seed"}
    }


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret"), KeyError("secret"), BaseExceptionGroup("g", [ValueError("secret")])],
    ids=repr,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unforeseen_error_tells_nothing(
    error: Exception, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """But to the log, under the request's id. Caught once: a line there said that the client had left."""
    response = await answer_to(error, method)
    line = next(record for record in caplog.records if record.name == "twigserve.gateway")
    told = {"request_id": "r-1", "status": 500, "err": "internal_error"}
    assert told.items() <= line.__dict__.items()
    assert line.exc_info is not None
    assert line.exc_info[1] is error
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["X-Request-ID"] == "r-1"
    assert response.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(("given", "sent"), [(7, "7"), (0, "1")])
async def test_retry_after(given: int, sent: str) -> None:
    response = await answer_to(TooBusy("later", retry_after_s=given))
    assert response.headers["Retry-After"] == sent


@pytest.mark.parametrize("status", [400, 401, 404, 405, 409, 413, 415, 418, 503])
def test_framework_errors_keep_their_status(status: int) -> None:
    error = as_api_error(HTTPException(status))
    assert error.status == status
    assert (error.kind == "server_error") == (status >= 500)


def test_a_client_that_left() -> None:
    assert as_api_error(ClientDisconnect()).status == 499


class Fieldless(BaseModel):
    model_config = ConfigDict(extra="forbid")


@pytest.mark.parametrize(("count", "param", "says"), [(100, "f0", "'f0'"), (101, None, "more than 100")])
def test_a_body_full_of_faults_is_refused_as_a_whole(count: int, param: str | None, says: str) -> None:
    """Each fault as an object of its own, 200,000 of them held the event loop for seconds."""
    with pytest.raises(ValidationError) as refused:
        Fieldless.model_validate({f"f{n}": 1 for n in range(count)})
    error = as_api_error(refused.value)
    assert (error.status, error.param) == (400, param)
    assert says in error.message


@pytest.mark.parametrize("name", ["body", "query"])
def test_a_field_may_have_any_name(name: str) -> None:
    """These are also what FastAPI calls where a parameter stood."""
    with pytest.raises(ValidationError) as refused:
        Fieldless.model_validate({name: 1})
    assert as_api_error(refused.value).message == f"Unknown field: '{name}'."
    detail = {"type": "missing", "loc": (name, "worker"), "msg": "Field required", "input": None}
    assert as_api_error(RequestValidationError([detail])).message == "'worker' is required."


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/describe", 405), ("DELETE", "/livez", 405), ("POST", "/v2", 404)],
)
async def test_routing_errors(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    response = await client.request(method, path)
    body: dict[str, Any] = response.json()
    assert response.status_code == status
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert response.headers["X-Request-ID"]
