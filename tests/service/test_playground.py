"""The playground's files and headers: complete, confined to their own origin, nothing inline."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from service.routes.playground import STATIC
from tests.service.bundle_scenes import SAMPLES, scenes

TEXTS = sorted(path for path in STATIC.rglob("*") if path.suffix in {".html", ".css", ".js", ".json", ".svg"})
MODULES = sorted(STATIC.glob("*.js"))
MAX_MODULE_LINES = 200
NAMESPACES = {"http://www.w3.org/2000/svg"}


class Markup(HTMLParser):
    """Collects what a strict policy would block, and every address the page names."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.addresses: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._within = tag
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.addresses += [given[name] or "" for name in ("src", "href") if given.get(name)]

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(f"<{self._within}>{data}")


@pytest.fixture
def markup() -> Markup:
    parser = Markup()
    parser.feed((STATIC / "index.html").read_text(encoding="utf-8"))
    return parser


async def test_the_page_and_every_file_carry_the_confining_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/static/main.js", "/static/style.css", "/static/samples/bees.png"):
        response = await client.get(path)
        assert response.status_code == 200, path
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-request-id"]


async def test_files_have_the_types_that_nosniff_wants(client: httpx.AsyncClient) -> None:
    kinds = {
        "/": "html",
        "/static/main.js": "javascript",
        "/static/style.css": "css",
        "/static/icon.svg": "svg",
    }
    for path, kind in kinds.items():
        assert kind in (await client.get(path)).headers["content-type"]


async def test_a_file_that_did_not_change_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/static/main.js")
    again = await client.get("/static/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_head_is_answered_like_get(client: httpx.AsyncClient) -> None:
    response = await client.head("/")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/", "/static/samples"]
)
async def test_nothing_but_the_files_is_served(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_nothing_in_the_page_is_inline(markup: Markup) -> None:
    assert not markup.inline


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_outside_address(path: Path) -> None:
    found = re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}[^\s\"')]*", path.read_text(encoding="utf-8"))
    assert set(found) <= NAMESPACES


def test_every_file_that_the_page_names_is_there(markup: Markup) -> None:
    named = {address for address in markup.addresses if address.startswith("static/")}
    assert named >= {"static/main.js", "static/style.css", "static/theme.js"}
    assert all((STATIC.parent / address).is_file() for address in named)
    assert not [address for address in markup.addresses if address.startswith("/")], (
        "breaks behind a path prefix"
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_are_small_and_import_what_exists(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.startswith("//"), "a module opens with what it owns"
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    assert all((STATIC / name).is_file() for name in re.findall(r'from "(\./[^"]+)"', text))
    assert "innerHTML" not in text


def test_bundled_scenes_are_the_sample_pictures() -> None:
    """Where this fails: `python -m tests.service.bundle_scenes`."""
    pictures = {path.name: path.read_bytes() for path in SAMPLES.glob("*.png")}
    assert {path.name: path.read_bytes() for path in (STATIC / "samples").glob("*.png")} == pictures
    index = json.loads((STATIC / "samples/index.json").read_text(encoding="utf-8"))
    assert index == scenes()
    assert {scene["file"] for scene in index} == set(pictures)
