"""Redis URLs with Sentinel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.broker.connection import async_client, sync_client
from service.redis_url import SentinelUrl, parse_redis_url
from service.settings import RedisSettings


def test_the_whole_form():
    url = "rediss+sentinel://us%40er:p%3Ass@one:1,two,[::1]:3/main/4?sentinel_password=s"
    assert parse_redis_url(url) == SentinelUrl(
        sentinels=(("one", 1), ("two", 26379), ("::1", 3)),
        master="main",
        db=4,
        tls=True,
        username="us@er",
        password="p:ss",
        sentinel_password="s",
    )


def test_the_short_form():
    assert parse_redis_url("redis+sentinel://s/m") == SentinelUrl((("s", 26379),), "m")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hid#den@h:1/0",
        "redis://:hid/den@h:1/0",
        "redis://:hid[den@h",
        "redis://h/main",
        "redis://h/0#1",
    ],
)
def test_a_url_that_is_read_wrongly_is_refused_without_its_password(url: str):
    """A part of the password was told as a port that is no number."""
    with pytest.raises(ValueError, match="%23") as caught:
        parse_redis_url(url)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("client", [sync_client, async_client])
@pytest.mark.parametrize("option", ["ssl_ca=x", "ssl_cert_reqs=perhaps"])
def test_an_option_that_is_none_is_told_at_once(client: Callable[[RedisSettings], Any], option: str):
    """Every use of the queue failed with a traceback, for ever."""
    with pytest.raises(ValueError, match="query of the Redis URL"):
        client(RedisSettings(url=SecretStr(f"rediss://:secret@127.0.0.1:9/0?{option}")))


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///run/redis.sock"])
def test_other_urls_are_redis_pys(url: str):
    assert parse_redis_url(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "h:6379",
        "redis+sentinel://h:26379",
        "redis+sentinel://h/m/x",
        "redis+sentinel:///m",
        "redis+sentinel://h:port/m",
        "redis+sentinel://a,,b/m",
        "redis+sentinel://h/m?sentinel_pasword=s",
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str):
    with pytest.raises(ValidationError) as refused:
        RedisSettings(url=url)
    assert "url" in str(refused.value)


def test_no_password_is_shown():
    assert "secret" not in repr(parse_redis_url("redis+sentinel://u:secret@h/m?sentinel_password=secret"))
