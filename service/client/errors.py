"""What a call of the client can fail with.

    TwigserveError
    ├─ Unreachable             no answer, or one that broke off and could not be taken up again
    └─ ApiFailure              the service said no: status, code, param, request_id
       ├─ Refused              4xx: the request itself is at fault; `param` names the field
       │  ├─ Denied            401, 403
       │  ├─ NotFound          404
       │  └─ Conflict          409: another request has the idempotency key, or the job was cancelled
       ├─ TooBusy              429, `retry_after_s`
       ├─ DeadlineExceeded     408, 504
       └─ ServerFailed         5xx, a redirect, or an answer that is not understood
          └─ Unavailable       502, 503, `retry_after_s`

Invariant: the message is the service's own, and an error event in a stream is told like the same failure
of a plain answer.
"""

from __future__ import annotations

# ruff: noqa: N818 (a suffix "Error" on every leaf would only repeat the root)
import email.utils
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

Answer = TypeVar("Answer", bound=BaseModel)


class TwigserveError(Exception):
    pass


class Unreachable(TwigserveError):
    pass


class ApiFailure(TwigserveError):
    """status: None where the failure came as an event of a stream, whose status was 200."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class Refused(ApiFailure):
    pass


class Denied(Refused):
    pass


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class TooBusy(ApiFailure):
    pass


class DeadlineExceeded(ApiFailure):
    pass


class ServerFailed(ApiFailure):
    pass


class Unavailable(ServerFailed):
    pass


BY_STATUS: dict[int, type[ApiFailure]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    408: DeadlineExceeded,
    409: Conflict,
    429: TooBusy,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
# Of error events, which carry no status.
BY_CODE: dict[str, type[ApiFailure]] = {
    "cancelled": Conflict,
    "deadline_exceeded": DeadlineExceeded,
    "gateway_stopping": Unavailable,
    "no_worker": Unavailable,
    "queue_down": Unavailable,
    "unavailable": Unavailable,
}


def of_response(response: httpx.Response) -> ApiFailure:
    """The response must have been read. A proxy in between may answer with anything."""
    error = _error_of(response.content)
    kind = BY_STATUS.get(response.status_code, Refused if response.is_client_error else ServerFailed)
    return kind(
        error.get("message") or f"The service answered {response.status_code} {response.reason_phrase}.",
        status=response.status_code,
        code=error.get("code"),
        param=error.get("param"),
        request_id=response.headers.get("X-Request-ID"),
        retry_after_s=retry_after_s(response.headers),
    )


def of_event(data: str, request_id: str | None) -> ApiFailure:
    error = _error_of(data)
    refused = error.get("type") == "invalid_request_error"
    kind = BY_CODE.get(error.get("code") or "", Refused if refused else ServerFailed)
    message = error.get("message") or "The service failed."
    return kind(message, code=error.get("code"), param=error.get("param"), request_id=request_id)


def understood(kind: type[Answer], data: str | bytes) -> Answer:
    """What says 200 may be another than the service, or a service of another version."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as odd:
        raise ServerFailed(f"The service's answer is not understood: it is no {kind.__name__}.") from odd


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """RFC 9110: seconds, or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _error_of(body: str | bytes) -> dict[str, Any]:
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {}
