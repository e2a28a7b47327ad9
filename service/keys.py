"""API keys: a JSON file of their SHA-256 digests and what each may do, read again when it changes.

A key is 256 random bits, so its plain digest cannot be searched for; the key itself is nowhere kept.
Invariant: a key is compared with every digest in constant time; a file that becomes unreadable changes
nothing until it can be read again.
Must not know: HTTP, the queue.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.callers import Caller
from service.protocol import Priority

log = logging.getLogger(__name__)

PREFIX = "twig-"
KEY_BYTES = 32
LOOK_EVERY_S = 1.0
NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class _Strict(BaseModel):
    # Where a key itself stands in place of its digest, an error must not tell it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class KeyEntry(_Strict):
    """name: whose jobs they are. Limits that are not there are none. priorities: the first is the default."""

    name: str = Field(pattern=NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_in_flight: int | None = Field(None, ge=1)
    priorities: tuple[Priority, ...] = Field(("interactive", "batch"), min_length=1)

    def caller(self) -> Caller:
        return Caller(self.name, self.requests_per_minute, self.tokens_in_flight, self.priorities)


class KeyFile(_Strict):
    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> KeyFile:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"two keys have the {field} {repeated[0]}")
        return self

    def with_key(self, entry: KeyEntry) -> KeyFile:
        return KeyFile(keys=(*self.keys, entry))

    def without(self, name: str) -> KeyFile:
        rest = tuple(key for key in self.keys if key.name != name)
        if len(rest) == len(self.keys):
            raise ValueError(f"no key is named {name}")
        return KeyFile(keys=rest)


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> KeyFile:
    return KeyFile.model_validate_json(path.read_bytes())


def write_keys(path: Path, keys: KeyFile) -> None:
    """Whole or not at all: gateways read it at any time. A new file is readable by its owner alone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(keys.model_dump_json(indent=2, exclude_none=True) + "\n")
    if os.name == "posix" and path.exists():
        _as_before(name, path.stat())
    os.replace(name, path)


def change_keys(path: Path, change: Callable[[KeyFile], KeyFile]) -> None:
    """Who changes the file at the same time waits; what a link points to is changed, not the link."""
    path = path.resolve()
    with _turn(path.parent):
        write_keys(path, change(read_keys(path) if path.exists() else KeyFile()))


def _as_before(name: str, was: os.stat_result) -> None:
    """Root must not take the file from the gateway's user. Others cannot give a file away."""
    with contextlib.suppress(PermissionError):
        if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(name, was.st_uid, was.st_gid)
        os.chmod(name, stat.S_IMODE(was.st_mode))


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Where there is no such lock (Windows, some network file systems) nobody waits."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class KeyRing:
    """The file as it is now: a change is seen within a second. Raises where it cannot be read at first."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen = self._stamp()
        self._keys = read_keys(path).keys
        self._next_look = clock() + LOOK_EVERY_S

    def caller(self, key: str) -> Caller | None:
        self._look()
        given, found = digest(key), None
        for entry in self._keys:
            if hmac.compare_digest(entry.sha256, given):
                found = entry
        return None if found is None else found.caller()

    def _stamp(self) -> tuple[int, int, int]:
        now = self._path.stat()  # of what a mounted Secret's link points to now
        return now.st_mtime_ns, now.st_ino, now.st_size

    def _look(self) -> None:
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_EVERY_S
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._keys, self._seen = read_keys(self._path).keys, stamp
        except (OSError, ValueError) as error:
            log.error("API keys not read again", extra={"error": type(error).__name__})
        else:
            log.info("API keys read again", extra={"keys": len(self._keys)})
