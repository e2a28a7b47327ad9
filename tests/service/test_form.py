"""Forms as bytes: what browsers and clients send is read as starlette reads it, and no bytes do harm."""

from __future__ import annotations

import encodings
import random
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from service.errors import BadRequest
from service.form import MAX_FIELD_BYTES, MAX_PART_HEAD_BYTES, Part, boundary_of, parts_of

TYPE = "multipart/form-data; boundary=edge"
FORM = (
    b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nWhat\r\nis it?\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a b.png"\r\n'
    b"Content-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n--edge\x00\r\n--edg\r\n--edge--\r\n"
)


def parsed(body: bytes, content_type: str = TYPE, max_files: int = 8, max_fields: int = 8) -> list[Part]:
    return parts_of(body, *boundary_of(content_type), max_files, max_fields)


async def starlettes(body: bytes, content_type: str) -> list[tuple[str, str | bytes, str | None]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    form = await MultiPartParser(Headers({"content-type": content_type}), stream()).parse()
    items: list[tuple[str, str | bytes, str | None]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            items.append((name, await value.read(), value.filename))
        else:
            items.append((name, value, None))
    await form.close()
    return items


def ours(parts: list[Part]) -> list[tuple[str, str | bytes, str | None]]:
    return [(part.name, part.text if part.filename is None else part.data, part.filename) for part in parts]


def test_texts_and_files() -> None:
    prompt, image = parsed(FORM)
    assert (prompt.name, prompt.text, prompt.filename) == ("prompt", "What\r\nis it?", None)
    assert (image.name, image.filename) == ("image", "a b.png")
    assert image.data == b"\x89PNG\r\n\x1a\n--edge\x00\r\n--edg"


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="image"; filename=""',
        b'form-data; filename="x.png"; name="image"',
        b"form-data; name=image",
        b'form-data; name="im\\"age"; filename="q\\"q.png"',
        b"form-data; name=\"bild\"; filename*=UTF-8''stra%C3%9Fe.png",
        'form-data; name="größe"; filename="straße.png"'.encode(),
        'form-data; name="größe"'.encode("latin-1"),
        b'form-data; name="a"; filename="C:\\\\dir\\\\x.png"',
    ],
)
@pytest.mark.parametrize(
    "content_type",
    [TYPE, 'multipart/form-data; boundary="edge"', "multipart/form-data; charset=latin-1; boundary=edge"],
)
async def test_names_are_read_as_starlette_reads_them(disposition: bytes, content_type: str) -> None:
    body = b"--edge\r\nContent-Disposition: " + disposition + b"\r\n\r\n\xc3\xa4\r\n--edge--\r\n"
    assert ours(parsed(body, content_type)) == await starlettes(body, content_type)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "ä"]), st.binary(max_size=60), st.booleans()), max_size=5)
)
@settings(max_examples=60, deadline=None)
async def test_any_content_is_read_as_starlette_reads_it(given_: list[tuple[str, bytes, bool]]) -> None:
    body = b""
    for name, data, is_file in given_:
        file = b'; filename="f"' if is_file else b""
        body += b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + file
        body += b"\r\n\r\n" + data + b"\r\n"
    body += b"--edge--\r\n"
    assert ours(parsed(body)) == await starlettes(body, TYPE)


@pytest.mark.parametrize("end", range(0, len(FORM) - 4, 3))
def test_a_form_that_was_cut_is_refused(end: int) -> None:
    with pytest.raises(BadRequest):
        parsed(FORM[:end])


def test_whatever_comes_is_read_or_refused() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        body = bytearray(FORM)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.choice(
                [b"\r\n", b"--edge", b'"', b":", b"\x00", b""]
            )
        try:
            parts = parsed(bytes(body))
        except BadRequest:
            continue
        assert all(len(part.data) <= len(body) for part in parts)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "us-ascii", "iso-8859-1"])
def test_charsets_that_are_read(charset: str) -> None:
    prompt, _ = parsed(FORM, f"{TYPE}; charset={charset}")
    assert prompt.text == "What\r\nis it?"


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "unicode_escape", "utf-7", "nosuch"])
def test_the_choice_of_a_codec_is_not_the_clients(charset: str) -> None:
    """Punycode is quadratic and held the event loop, "undefined" raised what became a 500, and names that
    are none stayed in a cache of Python's for good.
    """
    known = len(encodings._cache)  # type: ignore[attr-defined]
    with pytest.raises(BadRequest, match="send utf-8"):
        parsed(FORM, f"{TYPE}; charset={charset}")
    assert len(encodings._cache) == known  # type: ignore[attr-defined]


def test_limits() -> None:
    one = b'--edge\r\nContent-Disposition: form-data; name="a"%s\r\n\r\nx\r\n'
    assert len(parsed(one % b"" * 8 + b"--edge--")) == 8
    for body in (one % b"" * 9, one % b'; filename="f"' * 9):
        with pytest.raises(BadRequest, match="Too many"):
            parsed(body + b"--edge--")
    with pytest.raises(BadRequest, match="more than"):
        parsed((one % b"").replace(b"x", b"x" * (MAX_FIELD_BYTES + 1)) + b"--edge--")
    with pytest.raises(BadRequest, match="head"):
        parsed((one % b"").replace(b"\r\n\r\n", b"\r\nX: " + b"y" * MAX_PART_HEAD_BYTES + b"\r\n\r\n"))
    with pytest.raises(BadRequest, match="boundary"):
        parsed(FORM, "multipart/form-data")
