"""Settings: frozen, from arguments before the environment, unknown keys named."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings

from docs.reference.configuration import settings_classes
from service.settings import (
    GatewaySettings,
    RedisSettings,
    WorkerSettings,
    explicit_redis_url,
    known_variables,
    told,
)


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


def test_what_the_examples_read_may_be_exported(monkeypatch: pytest.MonkeyPatch):
    """Caught once: with the key exported as the page's snippets say, no command of ours would start."""
    monkeypatch.setenv("TWIGSERVE_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("TWIGSERVE_API_KEY", "sk-1")
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


@pytest.mark.parametrize("typo", ["TWIGSERVE_REDIS_TYPO", "TWIGSERVE_REDIS_LEASE_S"])
def test_a_fault_is_told_in_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch, typo: str):
    """The whole input stood in the message, password and all."""
    monkeypatch.setenv("TWIGSERVE_REDIS_URL", "redis://:secret@host/0")
    monkeypatch.setenv(typo, "20 seconds")
    with pytest.raises(ValueError, match="validation") as caught:
        RedisSettings()
    assert "secret" not in str(caught.value)
    assert typo in told(caught.value)
    assert "\n" not in told(caught.value)


def test_a_list_that_is_none_is_told_how_to_be_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIGSERVE_GATEWAY_CORS_ORIGINS", "https://example.org")
    with pytest.raises(ValueError, match="cors_origins") as caught:
        GatewaySettings()
    assert "JSON" in told(caught.value)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch):
    """An empty keys_file was the folder that the process stood in, and counted as keys."""
    for name in ("WORKER_THREADS", "REDIS_URL", "GATEWAY_KEYS_FILE"):
        monkeypatch.setenv(f"TWIGSERVE_{name}", "")
    assert WorkerSettings().threads is None
    assert GatewaySettings().keys_file is None
    assert explicit_redis_url() is None
    with pytest.raises(ValueError, match="outside"):
        GatewaySettings(host="0.0.0.0")


@pytest.mark.parametrize("value", [{"drain_s": float("inf")}, {"heartbeat_s": 15, "heartbeat_ttl_s": 15}])
def test_values_that_only_look_possible_are_refused(value: dict[str, float]):
    """No end of a drain cannot be waited for; a worker between two signs of life was not counted."""
    with pytest.raises(ValueError, match=list(value)[-1]):
        WorkerSettings(**value)
