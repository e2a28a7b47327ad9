"""Every error a client can be given, and the one shape it is given in.

    ApiError                        500  server_error
    ├─ BadRequest                   400  invalid_request_error
    │  └─ BadField                  400    … names the field in `param`
    ├─ Unauthorized                 401  no API key, or one that is not known
    ├─ Forbidden                    403  the key may not do this
    ├─ NotFound                     404
    ├─ MethodNotAllowed             405
    ├─ BodyTimeout                  408  the client did not send its body in time
    ├─ Conflict                     409
    │  ├─ IdempotencyConflict       409  the key was used for a different request
    │  └─ Cancelled                 409  somebody cancelled the job
    ├─ TooLarge                     413  body, file or pixel count
    ├─ HeadTooLarge                 431  the request's head
    ├─ UnsupportedMedia             415  not an image format (or content type) that is read
    ├─ Unprocessable                422
    │  ├─ UndecodableImage          422    right format, broken content
    │  └─ ImpossibleRetained        422    R-bar outside the model's range
    ├─ ClientGone                   499  nobody reads it; for counters and logs
    ├─ TooBusy                      429  rate_limit_error, Retry-After
    │  └─ RateLimited               429  the key's requests a minute
    ├─ JobFailed                    500  server_error, the engine or the worker failed
    ├─ Unavailable                  503  server_error, Retry-After
    │  ├─ NoWorker                  503
    │  ├─ Stopping                  503  this gateway leaves; the job goes on
    │  └─ QueueDown                 503
    └─ DeadlineExceeded             504  server_error

Invariant: whatever is raised below a route leaves as `{"error": {message, type, code, param}}` with an
`X-Request-ID`, and no message ever holds a traceback or an internal path.
Must not know: how a request is checked, or what the queue is made of.
"""

from __future__ import annotations

# ruff: noqa: N818 (a suffix "Error" on every leaf would only repeat the root)
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

REQUEST_ID_HEADER = "X-Request-ID"
# The type of pydantic errors of ours, and the code that the client sees.
UNSUPPORTED = "unsupported_value"
# With more faults than these a body is refused as a whole: an object for each would take seconds to build.
MAX_FAULTS = 100


class ApiError(Exception):
    status = 500
    kind = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}
        return {"error": error}


@contextlib.contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """names: our fields' names -> those that the client knows, for what is raised in here."""
    try:
        yield
    except ApiError as error:
        error.param = names.get(error.param, error.param) if error.param else None
        raise


class BadRequest(ApiError):
    status, kind, code = 400, "invalid_request_error", "bad_request"


class BadField(BadRequest):
    code = "invalid_field"

    def __init__(self, param: str, message: str, *, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)


class Unauthorized(ApiError):
    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ApiError):
    status, kind, code = 403, "invalid_request_error", "forbidden"


class NotFound(ApiError):
    status, kind, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(ApiError):
    status, kind, code = 405, "invalid_request_error", "method_not_allowed"


class BodyTimeout(ApiError):
    status, kind, code = 408, "invalid_request_error", "body_timeout"


class Conflict(ApiError):
    status, kind, code = 409, "invalid_request_error", "conflict"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class Cancelled(Conflict):
    code = "cancelled"


class TooLarge(ApiError):
    status, kind, code = 413, "invalid_request_error", "too_large"


class HeadTooLarge(ApiError):
    status, kind, code = 431, "invalid_request_error", "head_too_large"


class UnsupportedMedia(ApiError):
    status, kind, code = 415, "invalid_request_error", "unsupported_media_type"


class Unprocessable(ApiError):
    status, kind, code = 422, "invalid_request_error", "unprocessable"


class UndecodableImage(Unprocessable):
    code = "undecodable_image"


class ImpossibleRetained(Unprocessable):
    code = "impossible_retained_tokens"


class ClientGone(ApiError):
    status, kind, code = 499, "invalid_request_error", "client_gone"


class TooBusy(ApiError):
    status, kind, code = 429, "rate_limit_error", "queue_full"


class RateLimited(TooBusy):
    code = "rate_limit_exceeded"


class JobFailed(ApiError):
    code = "job_failed"


class Unavailable(ApiError):
    status, code = 503, "unavailable"


class NoWorker(Unavailable):
    code = "no_worker"


class Stopping(Unavailable):
    code = "gateway_stopping"


class QueueDown(Unavailable):
    code = "queue_down"


class DeadlineExceeded(ApiError):
    status, code = 504, "deadline_exceeded"


ROUTING_ERRORS: dict[int, type[ApiError]] = {
    400: BadRequest,
    404: NotFound,
    405: MethodNotAllowed,
    413: TooLarge,
    415: UnsupportedMedia,
}


def field_error(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's findings as a 400 that names the field and, in its message, the limit."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    if not first["loc"]:
        return BadRequest(f"The body must be an object: {first['msg']}.")
    param, place = str(first["loc"][0]), _place(first["loc"])
    if first["type"] == "extra_forbidden":
        return BadField(param, f"Unknown field: '{place}'.", code="unknown_field")
    if first["type"] == "missing":
        return BadField(param, f"'{place}' is required.", code="missing_field")
    code = first["type"] if first["type"] == UNSUPPORTED else None
    return BadField(param, f"Bad value for '{place}': {first['msg']}.", code=code)


def _place(loc: Sequence[int | str]) -> str:
    """`messages[1].content[0].text`, from `("messages", 1, "content", 0, "text", "text")`.

    What stands between an index and a name is the tag of a union's member, which is no field.
    """
    place = ""
    for before, part, after in zip(("", *loc), loc, (*loc[1:], 0), strict=False):
        if isinstance(part, int):
            place += f"[{part}]"
        elif not (isinstance(before, int) and isinstance(after, str)):
            place += f".{part}" if place else part
    return place


def _faults(exc: RequestValidationError | ValidationError) -> ApiError:
    if isinstance(exc, RequestValidationError):
        first = exc.errors()[0]
        return field_error([{**first, "loc": first["loc"][1:]}])  # without "query", "path", "body"
    if exc.error_count() > MAX_FAULTS:
        return BadRequest(f"The body has more than {MAX_FAULTS} faults.")
    return field_error(exc.errors())


def as_api_error(exc: Exception) -> ApiError:
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, RequestValidationError | ValidationError):
        return _faults(exc)
    if isinstance(exc, HTTPException):
        return _routing_error(exc)
    if isinstance(exc, ClientDisconnect):
        return ClientGone("The client went away.")
    return ApiError("The service failed to answer this request.")


def _routing_error(exc: HTTPException) -> ApiError:
    known = ROUTING_ERRORS.get(exc.status_code)
    if known is not None:
        return known(str(exc.detail))
    error = ApiError(str(exc.detail), code=HTTPStatus(exc.status_code).name.lower())
    error.status = exc.status_code
    if exc.status_code < 500:
        error.kind = "invalid_request_error"
    return error


def error_response(request: Request, exc: Exception) -> JSONResponse:
    error = as_api_error(exc)
    headers = dict(exc.headers or {}) if isinstance(exc, HTTPException) else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, error.retry_after_s))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    # The handler of unknown exceptions answers outside the request-id middleware, so the header is set here.
    request_id = getattr(request.state, "request_id", None)
    request.state.err = error.code
    if request_id is not None:
        headers[REQUEST_ID_HEADER] = request_id
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _handle(request: Request, exc: Exception) -> JSONResponse:
    return error_response(request, exc)


# What a request may meet. All else is a defect, which the server logs.
HANDLED = (ApiError, HTTPException, RequestValidationError, ValidationError, ClientDisconnect)


def install_handlers(app: FastAPI) -> None:
    for kind in (*HANDLED, Exception):
        app.add_exception_handler(kind, _handle)
