"""A small typed client of the HTTP API, sync and async.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.describe("picture.jpg", quality="fast").text)

Invariant: a request that is sent again makes no second job: each carries an idempotency key.
Must not know: anything of the service but its HTTP API and the schemas of its answers.
"""

from service.client.aio import AsyncClient
from service.client.ask import Options, Picture
from service.client.errors import (
    ApiFailure,
    Conflict,
    DeadlineExceeded,
    Denied,
    NotFound,
    Refused,
    ServerFailed,
    TooBusy,
    TwigserveError,
    Unavailable,
    Unreachable,
)
from service.client.retry import Retry
from service.client.sync import Client
from service.schemas import Description, TokenEvent
from service.schemas_jobs import JobObject

__all__ = [
    "ApiFailure",
    "AsyncClient",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "Description",
    "JobObject",
    "NotFound",
    "Options",
    "Picture",
    "Refused",
    "Retry",
    "ServerFailed",
    "TokenEvent",
    "TooBusy",
    "TwigserveError",
    "Unavailable",
    "Unreachable",
]
