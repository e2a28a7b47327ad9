"""Every setting of the service: its name, default and variable. The only reader of the environment.

`TWIGSERVE_REDIS_*`, `TWIGSERVE_GATEWAY_*`, `TWIGSERVE_WORKER_*`. Invariant: a settings object is frozen and
complete; an unknown key, as an argument or as a `TWIGSERVE_` variable, is an error that names it. What each
means is told below it, and from there in the guide's configuration page.
Resolved once at the edge (`cli`) and passed down; knows nothing of what is done with it.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from service.redis_url import parse_redis_url

ENV_PREFIX = "TWIGSERVE_"


class _Settings(BaseSettings):
    # An input may be a password or a key. Compose files make empty variables of those that are not set.
    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_variables(cls, data: Any) -> Any:
        unknown = unknown_variables(os.environ)
        if unknown:
            raise ValueError(f"unknown environment variable: {', '.join(unknown)}")
        return data


class RedisSettings(_Settings):
    """Gateways and workers of one service have the same."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "REDIS_")

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """redis://, rediss:// or unix://, or redis+sentinel:// for a failover pair."""
    shard: str = Field("q", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Hash tag of all keys: two services on one Redis take two."""
    lease_s: float = Field(20.0, ge=0.2, le=300)
    """How long a silent worker keeps its jobs; the same in every worker, as others reclaim by their own."""
    max_deliveries: int = Field(3, ge=1)
    """A job that so many workers have dropped is set aside as poisoned."""
    batch_share: float = Field(0.1, gt=0, lt=1)
    """Part of the tokens that batch work gets while interactive work waits; the same in every worker."""
    connect_timeout_s: float = Field(2.0, gt=0)
    """For a connection to come about."""
    command_timeout_s: float = Field(5.0, gt=0)
    """For an answer to one command."""
    backoff_max_s: float = Field(2.0, gt=0)
    """The longest wait between two attempts to reconnect."""
    job_ttl_s: int = Field(6 * 3600, ge=1)
    """A job that never ends is forgotten after this."""
    result_ttl_s: int = Field(900, ge=1)
    """How long an answer can be fetched once its job has ended."""
    max_events: int = Field(65_536, ge=64)
    """Events kept of one job."""
    max_dead: int = Field(10_000, ge=1)
    """Jobs that were set aside, kept to be looked at."""
    min_replicas: int = Field(0, ge=0, le=8)
    """A job is accepted once so many replicas have it."""
    replica_timeout_s: float = Field(1.0, gt=0)
    """How long that is waited for; then the job is refused."""

    @field_validator("url")
    @classmethod
    def _readable_url(cls, url: SecretStr) -> SecretStr:
        parse_redis_url(url.get_secret_value())
        return url


class TracingSettings(_Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "TRACING_")

    endpoint: str | None = None
    """Where OTLP over HTTP is taken, as http://collector:4318/v1/traces; without it no traces."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the requests that are traced, where the caller has not decided it."""


class GatewaySettings(_Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "GATEWAY_")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65_535)
    """0 takes a free one."""
    keys_file: Path | None = None
    """API keys (`twigserve keys add`); without it anybody may ask."""
    allow_anonymous: bool = False
    """Lets anybody ask on a host that is not loopback: something in front decides who may."""
    cors_origins: tuple[str, ...] = ()
    """Other sites (`https://example.org`, or `*`) whose pages may call the API from a browser."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    max_image_bytes: int = Field(20 * 1024 * 1024, ge=1)
    """Of one picture's file."""
    max_pixels: int = Field(50_000_000, ge=1)
    """Of one picture; checked from its header, before it is decoded."""
    image_url_hosts: tuple[str, ...] = ()
    """Hosts that pictures are fetched from by URL (`example.org`, `example.org:8443`, `*.example.org`); with
    none, nothing is fetched."""
    image_url_timeout_s: float = Field(10.0, gt=0)
    """For one picture to be fetched."""
    max_prompt_chars: int = Field(32_768, ge=1)
    """Of one request's question."""
    max_tokens_default: int = Field(128, ge=1)
    """Longest answer where a request does not say."""
    max_tokens_limit: int = Field(4096, ge=1)
    """Longest answer that a request may ask for."""
    max_open_requests: int = Field(256, ge=1)
    """POSTs that this gateway holds at once; over it, 429."""
    max_reserved_tokens: int = Field(262_144, ge=1)
    """Predicted tokens of all unfinished jobs of all gateways; over it, 429."""
    look_age_s: float = Field(0.1, ge=0, le=5)
    """How old the view of queue and fleet may be against which a request is admitted."""
    request_timeout_s: float = Field(300.0, gt=0)
    """The longest that an answer is waited for; X-Request-Timeout-Ms asks for less."""
    job_timeout_s: float = Field(3600.0, gt=0)
    """The longest that a background job may take; X-Request-Timeout-Ms asks for less."""
    body_timeout_s: float = Field(60.0, gt=0)
    """For a request's body to arrive."""
    sse_heartbeat_s: float = Field(10.0, gt=0)
    """A stream that is silent for so long gets a comment."""
    decode_processes: int = Field(2, ge=1)
    """Pictures decoded at the same time: bounds the memory that decoding takes."""
    shutdown_s: float = Field(20.0, ge=0)
    """How long open requests may finish after SIGTERM."""
    batch_max_lines: int = Field(1000, ge=1)
    """Requests in one batch."""
    batch_max_bytes: int = Field(20 * 1024 * 1024, ge=1)
    """Of one batch's file."""
    batch_max_open: int = Field(16, ge=1)
    """Unfinished batches of one API key; over it, 429."""
    batch_store_bytes: int = Field(256 * 1024 * 1024, ge=1)
    """Of the files of all batches, one key's at most half; over it, 429. A file counts as 64 KiB at least."""
    batch_running: int = Field(4, ge=1)
    """Batches that one gateway runs at once: it holds their files in memory. Others wait."""
    batch_ttl_s: int = Field(24 * 3600, ge=60)
    """How long batches and their files are kept."""
    batch_look_s: float = Field(2.0, gt=0)
    """How late a batch is taken up at most."""
    worker_metrics_urls: tuple[str, ...] = ()
    """Expositions appended to `/metrics`; `twigserve serve` sets it."""

    @model_validator(mode="after")
    def _nobody_unknown_from_outside(self) -> Self:
        if not (self.keys_file or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached from outside: set keys_file (`twigserve keys add`), or"
                " allow_anonymous where something in front decides who may ask"
            )
        return self


class WorkerSettings(_Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "WORKER_")

    vlm: str = "embedded"
    """A checkpoint directory, or `embedded`."""
    twig: str | None = None
    """The twig's directory; the embedded model brings its own."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: bfloat16 where device or native kernels have it, else float32."""
    threads: int | None = Field(None, ge=1)
    """Threads of torch; unset leaves it to torch."""
    max_batch: int = Field(8, ge=1)
    """Requests decoded together."""
    max_image_tokens: int | None = Field(None, ge=1)
    """Of one image, where pictures keep their own resolution (qwen2_5_vl)."""
    image_fit: Literal["pad"] | None = None
    """pad: to a square with the mean colour, as the published twig was trained (llava). Unset: as the
    checkpoint's processor does."""
    kv_cache_bytes: int | None = Field(None, ge=1)
    """The most the KV cache may hold; unset is what max_batch requests need at the most."""
    batch_invariant: bool = False
    """The same answer to the last bit whatever else is asked at the time; on CPUs, with native kernels."""
    verify: bool = False
    """Checks at the start what `twigserve verify` checks, and does not become ready if that fails."""
    fork_layer: int | None = None
    """K, for a twig without twig_config.json."""
    drop_layer: int | None = None
    """F, for a twig without twig_config.json."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    worker_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    """Unset: the host's name, the process id and chance."""
    poll_s: float = Field(4.0, gt=0)
    """How late an idle worker sees an expired lease; new jobs wake it at once."""
    heartbeat_s: float = Field(5.0, gt=0)
    """Between two signs of life."""
    heartbeat_ttl_s: float = Field(15.0, gt=0)
    """A worker that is silent for so long is no longer counted."""
    drain_s: float = Field(20.0, ge=0)
    """How long running jobs may finish after SIGTERM."""
    stall_s: float = Field(120.0, gt=0)
    """An engine whose round takes longer counts as dead: its leases are let go, `check worker` fails."""
    metrics_host: str = "127.0.0.1"
    """Address of the worker's own /metrics."""
    metrics_port: int | None = Field(9100, ge=0, le=65_535)
    """0 takes a free one."""

    @model_validator(mode="after")
    def _counted_all_the_time(self) -> Self:
        if self.heartbeat_ttl_s <= self.heartbeat_s:
            raise ValueError("heartbeat_ttl_s must be above heartbeat_s, or a sound worker is not counted")
        return self


class LogSettings(_Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "LOG_")

    level: str = Field("info", pattern="^(debug|info|warning|error)$")
    """The least that is logged."""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# What the examples and the page's snippets read, so that it may be exported in an operator's shell.
CLIENTS_OWN = frozenset({ENV_PREFIX + "URL", ENV_PREFIX + "API_KEY"})
_ALL = (RedisSettings, TracingSettings, GatewaySettings, WorkerSettings, LogSettings)


def known_variables() -> frozenset[str]:
    names: set[str] = set()
    for settings in _ALL:
        prefix = str(settings.model_config["env_prefix"])
        names |= {(prefix + field).upper() for field in settings.model_fields}
    return frozenset(names)


def unknown_variables(environ: Any) -> list[str]:
    names = {name.upper() for name in environ if name.upper().startswith(ENV_PREFIX)}
    return sorted(names - known_variables() - CLIENTS_OWN)


def explicit_redis_url() -> str | None:
    """The Redis the environment names, None where it names none (then the launcher starts its own)."""
    settings = RedisSettings()
    return settings.url.get_secret_value() if "url" in settings.model_fields_set else None


def told(error: Exception) -> str:
    """In one line, by the names that who made the settings knows, and without what was given."""
    if isinstance(error, SettingsError):
        return f'{error}: a list is written as JSON, ["one", "another"]'
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(_named(error.title, fault["loc"]) + _fault(fault["msg"]) for fault in error.errors())


def _named(title: str, place: tuple[int | str, ...]) -> str:
    """The setting, and its variable where it is one of these settings."""
    name = ".".join(map(str, place))
    prefixes = {kind.__name__: str(kind.model_config["env_prefix"]) for kind in _ALL}
    variable = f" ({(prefixes[title] + name).upper()})" if name and title in prefixes else ""
    return f"{name}{variable}: " if name else ""


def _fault(message: str) -> str:
    return message.removeprefix("Value error, ")
