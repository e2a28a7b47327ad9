"""Settings: frozen, from arguments before the environment, unknown keys named."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings

from docs.reference.configuration import settings_classes
from service.settings import GatewaySettings, RedisSettings, WorkerSettings, known_variables


def test_defaults_are_complete_and_frozen():
    settings = GatewaySettings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
    assert settings.redis.lease_s == 20


def test_the_environment_is_read_and_an_argument_goes_before_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIGSERVE_WORKER_MAX_BATCH", "3")
    monkeypatch.setenv("TWIGSERVE_REDIS_URL", "redis://elsewhere:1/2")
    assert WorkerSettings().max_batch == 3
    assert WorkerSettings(max_batch=5).max_batch == 5
    assert WorkerSettings().redis.url.get_secret_value() == "redis://elsewhere:1/2"


def test_an_unknown_variable_stops_the_process_and_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIGSERVE_WORKER_MAX_BACH", "3")
    with pytest.raises(ValueError, match="TWIGSERVE_WORKER_MAX_BACH"):
        GatewaySettings()


def test_an_unknown_argument_is_named():
    with pytest.raises(ValueError, match="max_bach"):
        WorkerSettings(max_bach=3)


@pytest.mark.parametrize(
    ("settings", "value"),
    [(RedisSettings, {"lease_s": 0}), (RedisSettings, {"shard": "a{b"}), (GatewaySettings, {"port": 70_000})],
)
def test_impossible_values_are_refused(settings: type, value: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(value))):
        settings(**value)


def test_a_password_in_the_url_is_not_printed():
    assert "secret" not in repr(RedisSettings(url="redis://:secret@host/0"))


def test_variables_are_named_after_their_part():
    known = known_variables()
    assert {"TWIGSERVE_REDIS_URL", "TWIGSERVE_GATEWAY_PORT", "TWIGSERVE_WORKER_DRAIN_S"} <= known


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_means(kind: type[BaseSettings]):
    """The guide's configuration page is made of it."""
    fields = {name: field for name, field in kind.model_fields.items() if name not in ("redis", "tracing")}
    assert [name for name, field in fields.items() if not field.description] == []
