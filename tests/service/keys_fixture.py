"""A file with the keys of two callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.keys import KeyEntry, KeyFile, digest, new_key, write_keys

ALICE, BOB = new_key(), new_key()


def entry(name: str, key: str, **limits: Any) -> KeyEntry:
    return KeyEntry(name=name, sha256=digest(key), **limits)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write_keys(path, KeyFile(keys=(entry("alice", ALICE), entry("bob", BOB))))
    return path
