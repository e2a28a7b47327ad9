"""A multipart/form-data body becomes its parts, in one pass over bytes that are all there.

Chunk by chunk and through temporary files costs a small form more than all else that is done with it; and a
form is held whole anyway, as the JSON of the same request is.
Invariant: what is not a whole form is a 400, and the work is linear in the body's length.
Must not know: which fields there are.
Source: RFC 7578, RFC 2046 section 5.1 (without a preamble, and without padding behind a boundary).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header

from service.errors import BadRequest

MAX_FIELD_BYTES = 1024 * 1024
MAX_PART_HEAD_BYTES = 8 * 1024
# What nearly everybody sends; the rest (quoting, escapes, RFC 2231) is for the library.
PLAIN_TYPE = re.compile(r"multipart/form-data; ?boundary=([A-Za-z0-9'()+_./:=?-]+)")
# As a client may name them. Which of Python's codecs runs is never the client's choice: some take quadratic
# time, and some raise what no decoder should.
CHARSETS = {
    **dict.fromkeys(("utf-8", "utf8"), "utf-8"),
    **dict.fromkeys(("us-ascii", "ascii"), "ascii"),
    **dict.fromkeys(("iso-8859-1", "latin-1", "latin1"), "latin-1"),
}
PLAIN_DISPOSITION = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?')


@dataclass(frozen=True)
class Part:
    """filename: None where it is no file."""

    name: str
    data: bytes
    filename: str | None = None
    charset: str = "utf-8"

    @property
    def text(self) -> str:
        return decoded(self.data, self.charset)


async def read_form(request: Request, *, max_files: int, max_fields: int) -> list[Part]:
    boundary, charset = boundary_of(request.headers.get("content-type", ""))
    return parts_of(await request.body(), boundary, charset, max_files, max_fields)


def boundary_of(content_type: str) -> tuple[bytes, str]:
    """And the charset of names and texts."""
    plain = PLAIN_TYPE.fullmatch(content_type)
    if plain is not None:
        return plain[1].encode(), "utf-8"
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("Missing boundary in multipart.")
    given = options.get(b"charset", b"utf-8").decode("latin-1")
    charset = CHARSETS.get(given.lower())
    if charset is None:
        raise BadRequest(f"A form in the charset '{given[:40]}' is not read; send utf-8.")
    return boundary, charset


def parts_of(body: bytes, boundary: bytes, charset: str, max_files: int, max_fields: int) -> list[Part]:
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        raise _broken("it does not begin with its boundary")
    at = len(delimiter) - 2
    parts: list[Part] = []
    files = 0
    while (mark := body[at : at + 2]) == b"\r\n":
        part, at = _part(body, at + 2, delimiter, charset)
        parts.append(part)
        files += part.filename is not None
        if files > max_files:
            raise BadRequest(f"Too many files. Maximum number of files is {max_files}.")
        if len(parts) - files > max_fields:
            raise BadRequest(f"Too many fields. Maximum number of fields is {max_fields}.")
    if mark != b"--":
        raise _broken("a boundary is followed by something else")
    return parts


def _part(body: bytes, at: int, delimiter: bytes, charset: str) -> tuple[Part, int]:
    """The part whose head begins here, and where its delimiter ends."""
    head_ends = body.find(b"\r\n\r\n", at, at + MAX_PART_HEAD_BYTES)
    if head_ends < 0:
        raise _broken("a part has no end to its head, or too long a one")
    name, filename = _named(body[at:head_ends], charset)
    ends = body.find(delimiter, head_ends + 4)
    if ends < 0:
        raise _broken("its end is missing")
    if filename is None and ends - head_ends - 4 > MAX_FIELD_BYTES:
        raise BadRequest(f"A field of the form has more than {MAX_FIELD_BYTES} bytes.")
    return Part(name, body[head_ends + 4 : ends], filename, charset), ends + len(delimiter)


def _named(head: bytes, charset: str) -> tuple[str, str | None]:
    disposition = b""
    for line in head.split(b"\r\n"):
        header, colon, value = line.partition(b":")
        if not colon:
            raise _broken("a part's head has a line without a colon")
        if header.lower() == b"content-disposition":
            disposition = value.strip()
    plain = PLAIN_DISPOSITION.fullmatch(disposition)
    if plain is not None:
        name, filename = plain.groups()
    else:
        _, options = parse_options_header(disposition)
        name, filename = options.get(b"name"), options.get(b"filename")
    if name is None:
        raise BadRequest('The Content-Disposition header field "name" must be provided.')
    return decoded(name, charset), None if filename is None else decoded(filename, charset)


def decoded(text: bytes, charset: str) -> str:
    try:
        return text.decode(charset)
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _broken(why: str) -> BadRequest:
    return BadRequest(f"The body is not the form that its Content-Type announces: {why}.")
