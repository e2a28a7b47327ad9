"""How we connect to Redis, and what of its errors means "not now".

Invariant: no command is retried here behind the caller's back; losing the server, being refused, or
meeting a replica surfaces as `BrokerUnavailable`, and stale connections are dropped so that the next
call reaches the new master. Knows nothing of jobs.
"""

from __future__ import annotations

import re
from contextlib import closing
from importlib import resources
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError
from redis.retry import Retry

from service.broker.base import BrokerUnavailable
from service.broker.sentinel import async_sentinel_client, sentinel_client
from service.protocol import Keys
from service.redis_url import parse_redis_url
from service.settings import RedisSettings

# redis-py's ConnectionError also covers loading and failed authentication.
_AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    ReadOnlyError,
    MasterDownError,
    OutOfMemoryError,
    TryAgainError,
    OSError,
)
# Errors that redis-py has no class for, or that Redis 6.2 wraps when they come out of a script.
_NOT_NOW = re.compile(r"(^|-)(NOREPLICAS|UNBLOCKED|MISCONF|READONLY|OOM|MASTERDOWN|LOADING|TRYAGAIN) ")
_GATEWAY_CONNECTIONS = 64
_SHARED_LUA = ("common", "ledger", "fair", "life")  # each uses what stands before it


def _options(settings: RedisSettings) -> dict[str, Any]:
    return {
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_timeout": settings.command_timeout_s,
        "protocol": 2,
        "decode_responses": False,
        "client_name": "twigserve",
    }


def sync_client(settings: RedisSettings) -> redis.Redis:
    url, options = settings.url.get_secret_value(), _options(settings) | {"retry": Retry(NoBackoff(), 0)}
    behind = parse_redis_url(url)
    if behind is not None:
        return sentinel_client(behind, options)
    client = redis.Redis.from_url(url, **options)
    _check_options(client.connection_pool)
    return client


def _check_options(pool: Any) -> None:
    """A URL's query is only read when a connection is made, whenever that is."""
    try:
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, redis.RedisError) as error:
        raise ValueError(f"an option in the query of the Redis URL is none: {error}") from error


def server_version(settings: RedisSettings) -> tuple[int, ...]:
    """(7, 0, 15); Valkey tells the Redis it is compatible with. Raises redis-py's errors."""
    with closing(sync_client(settings)) as client:
        told = client.info("server")["redis_version"]
    return tuple(int(part) for part in str(told).split(".") if part.isdecimal())


def async_client(settings: RedisSettings, **overrides: Any) -> redis.asyncio.Redis:
    """Its pool makes a burst of requests wait for a connection instead of refusing them."""
    url, options = settings.url.get_secret_value(), _options(settings)
    options |= {
        "max_connections": _GATEWAY_CONNECTIONS,
        "timeout": settings.command_timeout_s,
        "retry": AsyncRetry(NoBackoff(), 0),
        **overrides,
    }
    behind = parse_redis_url(url)
    if behind is not None:
        return async_sentinel_client(behind, options)
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, **options)
    _check_options(pool)
    return redis.asyncio.Redis.from_pool(pool)


class Translated:
    """Turns "not now" errors into BrokerUnavailable; a script's own error stays a ResponseError.

    A class and not a generator: it stands around every command.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        not_now = isinstance(error, redis.ResponseError) and _NOT_NOW.search(str(error))
        if not_now or isinstance(error, _AWAY):
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error


_TRANSLATED = Translated()


def translated() -> Translated:
    return _TRANSLATED


def met_a_replica(error: BrokerUnavailable) -> bool:
    """The master was demoted under an open connection; a new one finds its successor."""
    return "READONLY" in str(error) or isinstance(error.__cause__, ReadOnlyError)


def script_source(name: str) -> str:
    folder = resources.files("service.broker")
    return "".join(folder.joinpath(f"{part}.lua").read_text() for part in (*_SHARED_LUA, name))


def script_header(keys: Keys, settings: RedisSettings) -> tuple[str | int, ...]:
    """ARGV[1..5] of every script, see common.lua."""
    return (keys.prefix, settings.job_ttl_s, settings.result_ttl_s, settings.max_events, settings.max_dead)
