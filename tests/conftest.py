"""Fixtures that every part of the tests may use; each part has its own conftest for the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, and the same examples are tried every time.
settings.register_profile("twigserve", deadline=None, derandomize=True)
settings.load_profile("twigserve")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """A command that runs in the test's own process sets up that process's log, on a stderr that ends with
    the test: the lines of every later one would be a traceback each.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
