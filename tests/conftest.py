"""Fixtures that every part of the tests may use; each part has its own conftest for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, and the same examples are tried every time.
settings.register_profile("twigserve", deadline=None, derandomize=True)
settings.load_profile("twigserve")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
