"""A Redis behind Sentinel as one URL, `redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/master[/db]`.

`rediss+sentinel://` speaks TLS to all of them. User and password are the Redis's own; the sentinels'
password, where they have one, is `?sentinel_password=`. All other URLs are redis-py's to read. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

SCHEMES = ("redis+sentinel", "rediss+sentinel")
PLAIN_SCHEMES = ("redis", "rediss", "unix")
SENTINEL_PORT = 26379


@dataclass(frozen=True)
class SentinelUrl:
    sentinels: tuple[tuple[str, int], ...]
    master: str
    db: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)


def parse_redis_url(url: str) -> SentinelUrl | None:
    """None for a URL without Sentinel. ValueError says what is wrong, without the password."""
    scheme = url.partition("://")[0]
    if scheme in PLAIN_SCHEMES:
        if scheme != "unix":
            _check_plain(url)
        return None
    if scheme not in SCHEMES:
        raise ValueError(f"a Redis URL begins with one of {', '.join((*PLAIN_SCHEMES, *SCHEMES))}")
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    master, _, db = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query)
    if not master or not (db or "0").isdigit() or set(query) - {"sentinel_password"}:
        raise ValueError(
            "a Sentinel URL is redis+sentinel://host:port,host:port/master[/db][?sentinel_password=]"
        )
    return SentinelUrl(
        sentinels=tuple(_address(host) for host in hosts.split(",")),
        master=unquote(master),
        db=int(db or 0),
        tls=scheme == "rediss+sentinel",
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_password=query.get("sentinel_password", [None])[0],
    )


def _check_plain(url: str) -> None:
    """redis-py tells a part of the password as the port, and takes a database without a number for 0."""
    try:
        parts = urlsplit(url)
        whole = parts.port != 0 and not parts.fragment and (parts.path.strip("/") or "0").isdecimal()
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(
            "a Redis URL is redis://[[user]:password@]host[:port][/db]; in user and password / ? # [ ] %"
            " are written %2F %3F %23 %5B %5D %25"
        ) from None


def _address(text: str) -> tuple[str, int]:
    """host, host:port or [IPv6]:port."""
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise ValueError("a Sentinel URL names at least one sentinel's host")
    return found.hostname, found.port or SENTINEL_PORT
