"""A checkpoint brought from a web server, each file held to its SHA-256. No torch, no knowledge of formats.

Invariant: under its own name a file is whole and right; what comes is written beside it and renamed once its
sum agrees. Exactly the listed files are fetched. A second call that finds its own list done asks nobody.
The list is what `sha256sum` prints; the address names a revision (on the Hub: …/resolve/<commit>).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx

DONE = ".sha256sums"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")

Progress = Callable[[str, int], None]


class FetchError(OSError):
    """What could not be fetched, or was not what the list says."""


def parse_sums(text: str) -> dict[str, str]:
    """File -> SHA-256. ValueError on a line that is none and on a path that leads out of the folder."""
    sums: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of sha256sum: {line[:80]!r}")
        path = PurePosixPath(match[2].removeprefix("./"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"leads out of the folder: {match[2][:80]!r}")
        sums[str(path)] = match[1]
    if not sums:
        raise ValueError("the list of checksums is empty")
    return sums


def fetch(url: str, folder: Path, sums: dict[str, str], tell: Progress = lambda *_: None) -> int:
    """How many files came. tell(file, bytes) as they come. Raises FetchError."""
    wanted = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    done = folder / DONE
    if done.exists() and done.read_text() == wanted and all((folder / name).exists() for name in sums):
        return 0
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        missing = [name for name in sorted(sums) if _digest(folder / name) != sums[name]]
        for name in missing:
            _fetch_one(client, f"{url.rstrip('/')}/{name}", folder / name, sums[name], tell)
    done.write_text(wanted)
    return len(missing)


def _fetch_one(client: httpx.Client, url: str, path: Path, digest: str, tell: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several workers may share the folder
    try:
        came = _download(client, url, part, lambda size: tell(path.name, size))
        if came != digest:
            raise FetchError(f"{url}: its SHA-256 is {came}, the list says {digest}")
        part.replace(path)
    except httpx.HTTPError as error:
        raise FetchError(f"{url}: {error or type(error).__name__}") from error
    finally:
        part.unlink(missing_ok=True)


def _download(client: httpx.Client, url: str, part: Path, tell: Callable[[int], None]) -> str:
    hashed = hashlib.sha256()
    with client.stream("GET", url) as response, part.open("wb") as file:
        if response.status_code != 200:
            raise FetchError(f"{url}: HTTP {response.status_code}")
        for chunk in response.iter_bytes(CHUNK_BYTES):
            hashed.update(chunk)
            file.write(chunk)
            tell(len(chunk))
    return hashed.hexdigest()


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
