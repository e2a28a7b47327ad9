"""Pictures by URL: fetched only from hosts that the operator allowed, and never from a private address.

Invariant: every connection, a redirect's too, goes to an address that was resolved and checked a moment
before by this process, so that a name cannot answer differently the second time (DNS rebinding); size and
time are capped; neither cookies nor proxies nor compressed bodies are taken. Off without allowed hosts.
Must not know: what is in a picture (what comes is treated as any upload), HTTP requests to us.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx

from service.errors import BadField, TooLarge

MAX_REDIRECTS = 3
MAX_URL_CHARS = 2048
PORTS = {"http": 80, "https": 443}
# What `ipaddress` calls global and is not a host's: protocol assignments, 6to4 relays, NAT64 (which carries
# an IPv4 address whose host may be anywhere).
NEVER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b::/32")))
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class ImageUrl:
    """param: the field that held it, for the error messages."""

    url: str
    param: str


@dataclass(frozen=True)
class FetchLimits:
    """hosts: `example.org`, `example.org:8443` (a port that is not the scheme's) or `*.example.org`."""

    hosts: tuple[str, ...]
    max_bytes: int
    timeout_s: float


async def resolved(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(info[4][0]) for info in found]


def is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in NEVER)
    return address.is_global and not special


class NotFetched(Exception):  # noqa: N818 - what happened
    """Why a picture was not fetched, in words for the client."""


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the address that it has checked; Host and certificate stay the name's."""

    def __init__(
        self,
        check_url: Callable[[httpx.URL], None],
        resolve: Callable[[str, int], Awaitable[Sequence[str]]],
        allowed: Callable[[Address], bool],
    ) -> None:
        self._check_url, self._resolve, self._allowed = check_url, resolve, allowed
        self._inner = httpx.AsyncHTTPTransport(trust_env=False, retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._check_url(request.url)
        host = request.url.host
        address = await self._checked_address(host, request.url.port or PORTS[request.url.scheme])
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,  # with the Host of the name
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(pinned)

    async def _checked_address(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as unknown:  # an empty label, or one too long, has no encoding
            raise NotFetched("its host is not known") from unknown
        # One private address among public ones is reason enough: which would be taken is chance.
        if not addresses or not all(self._allowed(ipaddress.ip_address(each)) for each in addresses):
            raise NotFetched("its host has an address that is not public")
        return addresses[0]

    async def aclose(self) -> None:
        await self._inner.aclose()


class ImageFetcher:
    """resolve, allowed: for tests, which have no public address to fetch from."""

    def __init__(
        self,
        limits: FetchLimits,
        resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolved,
        allowed: Callable[[Address], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._hosts = frozenset(host.lower() for host in limits.hosts)
        self._resolve, self._allowed = resolve, allowed

    def check(self, image: ImageUrl) -> None:
        """Refuses at once what would not be fetched."""
        if not self._hosts:
            message = f"'{image.param}' is a URL; pictures are not fetched, send base64."
            raise BadField(image.param, message, code="url_not_fetched")
        if len(image.url) > MAX_URL_CHARS:
            raise BadField(image.param, f"'{image.param}' is a URL of more than {MAX_URL_CHARS} characters.")
        try:
            self._check_url(httpx.URL(image.url))
        except UnicodeError as odd:  # IDNA
            raise self._refusal(image, "its host is not a name") from odd
        except (NotFetched, httpx.InvalidURL) as refused:
            raise self._refusal(image, str(refused)) from refused

    async def fetch(self, image: ImageUrl) -> bytes:
        self.check(image)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._get(image)
        except (TimeoutError, httpx.TimeoutException) as late:
            raise self._refusal(image, f"it took more than {self._limits.timeout_s:g} s") from late
        except NotFetched as refused:
            raise self._refusal(image, str(refused)) from refused
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as failed:
            raise self._refusal(image, "the connection failed") from failed

    async def _get(self, image: ImageUrl) -> bytes:
        # A client of its own: no cookie and no connection outlives the picture.
        client = httpx.AsyncClient(
            transport=CheckedTransport(self._check_url, self._resolve, self._allowed),
            timeout=self._limits.timeout_s,
            headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "twigserve"},
            trust_env=False,
        )
        url = httpx.URL(image.url)
        async with client:
            for _ in range(1 + MAX_REDIRECTS):
                # Followed here, because the client would read, and decompress, the body of every redirect.
                async with client.stream("GET", url) as response:
                    if response.next_request is None:
                        return await self._read(image, response)
                    url = response.next_request.url
        raise NotFetched(f"it redirects more than {MAX_REDIRECTS} times")

    async def _read(self, image: ImageUrl, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise NotFetched(f"its host answered {response.status_code}")
        most, held = self._limits.max_bytes, bytearray()
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(image, most)
        async for chunk in response.aiter_raw():
            held += chunk
            if len(held) > most:
                raise _too_large(image, most)
        return bytes(held)

    def _check_url(self, url: httpx.URL) -> None:
        if url.scheme not in PORTS:
            raise NotFetched("only http and https are fetched")
        if url.userinfo:
            raise NotFetched("it holds a user name or password")
        port = url.port or PORTS[url.scheme]
        place = url.host.lower().rstrip(".")
        named = place if port == PORTS[url.scheme] else f"{place}:{port}"
        above = "*." + named.partition(".")[2]
        if named not in self._hosts and above not in self._hosts:
            raise NotFetched("its host is not one that pictures are fetched from")

    def _refusal(self, image: ImageUrl, why: str) -> BadField:
        return BadField(image.param, f"'{image.param}' was not fetched: {why}.", code="image_not_fetched")


def _too_large(image: ImageUrl, most: int) -> TooLarge:
    return TooLarge(
        f"The picture behind '{image.param}' has more than {most} bytes.",
        param=image.param,
        code="image_too_large",
    )


def is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))
