"""Every test that takes `cluster` runs once an overlay."""

from __future__ import annotations

import pytest

from tests.deploy.cluster import OVERLAYS, Cluster, render
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401


@pytest.fixture(params=OVERLAYS)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return render(request.param)
