"""Pictures by URL, from real servers on loopback (which only the injected policy makes reachable)."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import ApiError, BadField, TooLarge
from service.image_url import FetchLimits, ImageFetcher, ImageUrl, is_public
from tests.service.gateway_fixture import Live
from tests.service.picture_server import PictureServer, answer, picture_server
from tests.service.pictures import encoded, noise
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import error_of

PICTURE = encoded(noise(30, 30), "PNG")
LOOPBACK = "127.0.0.1"


@pytest.fixture
async def server() -> AsyncIterator[PictureServer]:
    async with picture_server() as running:
        running.answers["/a.png"] = answer(PICTURE, Content_Length=str(len(PICTURE)))
        yield running


class Names:
    """Counts what it is asked; every name is one of `addresses`, one after the other."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = list(addresses)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return [self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0]]


def fetcher_of(server: PictureServer, *more_hosts: str, names: Any = None, **limits: Any) -> ImageFetcher:
    hosts = (f"pictures.test:{server.port}", *more_hosts)
    chosen = FetchLimits(**{"hosts": hosts, "max_bytes": 10_000, "timeout_s": 10.0} | limits)
    return ImageFetcher(chosen, names or Names(LOOPBACK), allowed=lambda address: address.is_loopback)


def url_of(server: PictureServer, path: str = "/a.png", host: str = "pictures.test") -> ImageUrl:
    return ImageUrl(f"http://{host}:{server.port}{path}", "image")


async def refusal(fetcher: ImageFetcher, url: ImageUrl) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await fetcher.fetch(url)
    assert refused.value.param == url.param
    return refused.value


async def test_a_picture_of_an_allowed_host(server: PictureServer) -> None:
    assert await fetcher_of(server).fetch(url_of(server)) == PICTURE
    (head,) = server.heads
    assert f"host: pictures.test:{server.port}" in head.lower()
    assert "cookie" not in head.lower()


async def test_off_unless_hosts_are_named(server: PictureServer) -> None:
    error = await refusal(fetcher_of(server, hosts=()), url_of(server))
    assert error.code == "url_not_fetched"
    assert server.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.test/a.png",
        "http://pictures.test/a.png",  # the port is part of the place
        "http://127.0.0.1:{port}/a.png",
        "http://pictures.test.:{port}1/a.png",
        "http://me:secret@pictures.test:{port}/a.png",
        "http://pictures.test@elsewhere.test:{port}/a.png",
        "http:///a.png",
        "http://[::1]:{port}/a.png",
        "http://xn--/a.png",  # caught once: a host that is no name was a 500
        "http://xn--a.pictures.test/a.png",
    ],
)
async def test_other_places_are_refused_without_a_connection(server: PictureServer, url: str) -> None:
    names = Names(LOOPBACK)
    fetcher = fetcher_of(server, names=names)
    error = await refusal(fetcher, ImageUrl(url.replace("{port}", str(server.port)), "image"))
    assert isinstance(error, BadField)
    assert error.code == "image_not_fetched"
    assert names.asked == []
    assert server.heads == []


@pytest.mark.parametrize("host", [".pictures.test", "a" * 64 + ".pictures.test"])
async def test_a_name_that_cannot_be_looked_up_is_refused(server: PictureServer, host: str) -> None:
    """Caught once: a 500, of the codec that the resolver encodes names with."""
    fetcher = ImageFetcher(FetchLimits(hosts=("*.pictures.test",), max_bytes=10_000, timeout_s=10.0))
    assert (await refusal(fetcher, ImageUrl(f"http://{host}/a.png", "image"))).code == "image_not_fetched"
    assert server.heads == []


async def test_a_wildcard_is_one_label_deep(server: PictureServer) -> None:
    fetcher = fetcher_of(server, f"*.pictures.test:{server.port}")
    assert await fetcher.fetch(url_of(server, host="a.pictures.test")) == PICTURE
    await refusal(fetcher, url_of(server, host="b.a.pictures.test"))
    await refusal(fetcher, url_of(server, host="evilpictures.test"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.8", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::",
        "2001:0:1::",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public(server: PictureServer, address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    limits = FetchLimits((f"pictures.test:{server.port}",), 1000, 5.0)
    error = await refusal(ImageFetcher(limits, Names(address)), url_of(server))
    assert "not public" in error.message
    assert address not in error.message
    assert server.heads == []


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_one_private_address_among_others_is_enough(server: PictureServer) -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return [LOOPBACK, "10.0.0.1"]

    assert "not public" in (await refusal(fetcher_of(server, names=both), url_of(server))).message


async def test_the_checked_address_is_the_one_connected_to(server: PictureServer) -> None:
    """A name that answers differently the second time is asked only once."""
    names = Names(LOOPBACK, "10.0.0.1")
    assert await fetcher_of(server, names=names).fetch(url_of(server)) == PICTURE
    assert names.asked == ["pictures.test"]


async def test_redirects_are_checked_again(server: PictureServer) -> None:
    allowed = f"http://pictures.test:{server.port}"
    server.answers["/moved"] = answer(status="302 Found", Location=f"{allowed}/a.png")
    server.answers["/away"] = answer(status="302 Found", Location="http://elsewhere.test/a.png")
    server.answers["/meta"] = answer(status="302 Found", Location="http://169.254.169.254/latest")
    server.answers["/file"] = answer(status="302 Found", Location="file:///etc/passwd")
    server.answers["/round"] = answer(status="302 Found", Location="/round")
    assert await fetcher_of(server).fetch(url_of(server, "/moved")) == PICTURE
    for path in ("/away", "/meta", "/file", "/round"):
        assert (await refusal(fetcher_of(server), url_of(server, path))).code == "image_not_fetched", path
    rebound = fetcher_of(server, names=Names(LOOPBACK, "10.0.0.1"))
    assert "not public" in (await refusal(rebound, url_of(server, "/moved"))).message


async def test_a_redirects_body_is_not_read(server: PictureServer) -> None:
    """It has no limit, and a compressed one grows a thousandfold: here it never ends."""
    moved = f"http://pictures.test:{server.port}/a.png"
    headers = {"Location": moved, "Content_Encoding": "gzip", "Content_Length": "300000000"}
    server.answers["/endless"] = answer(b"\x1f\x8b no gzip", status="302 Found", **headers)
    server.hangs.add("/endless")
    assert await fetcher_of(server).fetch(url_of(server, "/endless")) == PICTURE


async def test_redirects_are_counted(server: PictureServer) -> None:
    for left in range(5):
        location = f"/{left - 1}" if left else "/a.png"
        server.answers[f"/{left}"] = answer(status="302 Found", Location=location)
    assert await fetcher_of(server).fetch(url_of(server, "/2")) == PICTURE
    server.heads.clear()
    error = await refusal(fetcher_of(server), url_of(server, "/4"))
    assert "redirects more than 3 times" in error.message
    assert len(server.heads) == 4


async def test_size_is_capped(server: PictureServer) -> None:
    server.answers["/told"] = answer(b"x", Content_Length="10001")
    server.answers["/untold"] = answer(b"x" * 10_001)
    for path in ("/told", "/untold"):
        error = await refusal(fetcher_of(server), url_of(server, path))
        assert isinstance(error, TooLarge)
        assert "more than 10000 bytes" in error.message


async def test_time_is_capped(server: PictureServer) -> None:
    server.answers["/slow"] = answer(b"x", Content_Length="100")
    server.hangs.add("/slow")
    error = await refusal(fetcher_of(server, timeout_s=0.2), url_of(server, "/slow"))
    assert "more than 0.2 s" in error.message


async def test_other_failures(server: PictureServer) -> None:
    assert "answered 404" in (await refusal(fetcher_of(server), url_of(server, "/none"))).message
    server.answers["/cut"] = answer(b"x", Content_Length="100")
    assert "connection failed" in (await refusal(fetcher_of(server), url_of(server, "/cut"))).message

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    assert "not known" in (await refusal(fetcher_of(server, names=unknown), url_of(server))).message


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / "c.pem", folder / "k.pem"
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=t"
    command += f" -addext subjectAltName=DNS:{name}"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_the_certificate_is_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to an address, but TLS asks for, and checks, the host's name."""
    certificate, key = self_signed(tmp_path, "pictures.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    monkeypatch.setattr("certifi.where", lambda: str(certificate))
    async with picture_server(context) as server:
        server.answers["/a.png"] = answer(PICTURE)
        fetcher = fetcher_of(server, f"other.test:{server.port}")
        good = ImageUrl(f"https://pictures.test:{server.port}/a.png", "image")
        assert await fetcher.fetch(good) == PICTURE
        bad = ImageUrl(f"https://other.test:{server.port}/a.png", "image")
        assert "connection failed" in (await refusal(fetcher, bad)).message


async def test_describe_and_chat_fetch(live: Live, worker: ScriptedWorker, server: PictureServer) -> None:
    url = url_of(server).url
    chat = {"type": "image_url", "image_url": {"url": url}}
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        error = error_of(await client.post("/v1/describe", json={"image": url}), 400)
        assert error["code"] == "url_not_fetched"
        live.gateway.fetcher = fetcher_of(server)
        described = await client.post("/v1/describe", json={"image": url})
        assert described.status_code == 200, described.text
        said = await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": [chat]}]}
        )
        assert said.status_code == 200, said.text
        server.answers["/page"] = answer(b"<html>")
        error_of(await client.post("/v1/describe", json={"image": url_of(server, "/page").url}), 415)
    first, second = (job.images[0].sha256.split(":") for job in worker.jobs)
    assert (first[1], first[0]) == (second[1], worker.jobs[0].id)
