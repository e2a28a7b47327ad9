"""Redis URLs with Sentinel."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

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
