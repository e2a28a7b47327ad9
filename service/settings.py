"""Every setting of the service: its name, default and variable. The only reader of the environment.

`TWIGSERVE_REDIS_*`, `TWIGSERVE_GATEWAY_*`, `TWIGSERVE_WORKER_*`. Invariant: a settings object is frozen and
complete; an unknown key, as an argument or as a `TWIGSERVE_` variable, is an error that names it.
Resolved once at the edge (`cli`) and passed down; knows nothing of what is done with it.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.redis_url import parse_redis_url

ENV_PREFIX = "TWIGSERVE_"


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_variables(cls, data: Any) -> Any:
        unknown = unknown_variables(os.environ)
        if unknown:
            raise ValueError(f"unknown environment variable: {', '.join(unknown)}")
        return data


class RedisSettings(_Settings):
    """url: redis://, rediss:// or unix:// as redis-py reads it, or redis+sentinel:// (`redis_url`).

    shard: the hash tag of all our keys. min_replicas: a job is accepted once so many replicas have it, or
    refused after replica_timeout_s.

    lease_s must be the same in every worker: reclaiming uses the reclaimer's own. So must batch_share: the
    part of the tokens that batch work gets while interactive work waits (and all that it leaves).
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "REDIS_")

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    shard: str = Field("q", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    lease_s: float = Field(20.0, ge=0.2, le=300)
    max_deliveries: int = Field(3, ge=1)
    batch_share: float = Field(0.1, gt=0, lt=1)
    connect_timeout_s: float = Field(2.0, gt=0)
    command_timeout_s: float = Field(5.0, gt=0)
    backoff_max_s: float = Field(2.0, gt=0)
    job_ttl_s: int = Field(6 * 3600, ge=1)
    result_ttl_s: int = Field(900, ge=1)
    max_events: int = Field(65_536, ge=64)
    max_dead: int = Field(10_000, ge=1)
    min_replicas: int = Field(0, ge=0, le=8)
    replica_timeout_s: float = Field(1.0, gt=0)

    @field_validator("url")
    @classmethod
    def _readable_url(cls, url: SecretStr) -> SecretStr:
        parse_redis_url(url.get_secret_value())
        return url


class TracingSettings(_Settings):
    """endpoint: where OTLP over HTTP is taken, as http://collector:4318/v1/traces; without it no traces.

    sample_ratio: the share of requests that are traced, where the caller has not decided it.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "TRACING_")

    endpoint: str | None = None
    sample_ratio: float = Field(1.0, ge=0, le=1)


class GatewaySettings(_Settings):
    """max_pixels is checked from the header, before decoding.

    max_open_requests: POSTs this gateway holds at once. max_reserved_tokens: predicted tokens (`prediction`)
    of all unfinished jobs of all gateways. Over either, 429. request_timeout_s, job_timeout_s: the longest
    that an answer is waited for, and that a background job may take; X-Request-Timeout-Ms asks for less.
    body_timeout_s: how long a request's body may take to arrive. keys_file: API keys, see `keys`; without it
    anybody may ask, which a host that is not loopback must allow in so many words (allow_anonymous).
    cors_origins: other sites (`https://example.org`, or `*`) whose pages may call the API from a browser.

    image_url_hosts: whence pictures are fetched by URL (`example.org`, `example.org:8443`, `*.example.org`);
    with none, nothing is fetched. decode_processes bounds the memory of decoding: one picture each.

    look_age_s: how old the view of queue and fleet may be against which a request is admitted.

    batch_ttl_s: how long batches and their files are kept. batch_look_s: how late a batch is taken up.

    worker_metrics_urls: expositions appended to our own; the launcher of the all-in-one service sets it.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "GATEWAY_")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    keys_file: Path | None = None
    allow_anonymous: bool = False
    cors_origins: tuple[str, ...] = ()
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    max_image_bytes: int = Field(20 * 1024 * 1024, ge=1)
    max_pixels: int = Field(50_000_000, ge=1)
    image_url_hosts: tuple[str, ...] = ()
    image_url_timeout_s: float = Field(10.0, gt=0)
    max_prompt_chars: int = Field(32_768, ge=1)
    max_tokens_default: int = Field(128, ge=1)
    max_tokens_limit: int = Field(4096, ge=1)
    max_open_requests: int = Field(256, ge=1)
    max_reserved_tokens: int = Field(262_144, ge=1)
    look_age_s: float = Field(0.1, ge=0, le=5)
    request_timeout_s: float = Field(300.0, gt=0)
    job_timeout_s: float = Field(3600.0, gt=0)
    body_timeout_s: float = Field(60.0, gt=0)
    sse_heartbeat_s: float = Field(10.0, gt=0)
    decode_processes: int = Field(2, ge=1)
    shutdown_s: float = Field(20.0, ge=0)
    batch_max_lines: int = Field(1000, ge=1)
    batch_max_bytes: int = Field(20 * 1024 * 1024, ge=1)
    batch_ttl_s: int = Field(24 * 3600, ge=60)
    batch_look_s: float = Field(2.0, gt=0)
    worker_metrics_urls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _nobody_unknown_from_outside(self) -> Self:
        if not (self.keys_file or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached from outside: set keys_file (`twigserve keys add`), or"
                " allow_anonymous where something in front decides who may ask"
            )
        return self


class WorkerSettings(_Settings):
    """vlm: a checkpoint directory or `embedded`. drain_s: how long running jobs may finish after SIGTERM.

    dtype auto is bfloat16 where the device multiplies it natively or native kernels do, else float32.
    image_fit pad: to a square with the mean colour, as the published twig was trained (llava).
    max_image_tokens: of one image, where pictures keep their own resolution (qwen2_5_vl).
    kv_cache_bytes: the most the KV cache may hold; None is what max_batch requests need at the most.
    verify: checks at the start what `twigserve verify` checks, and does not become ready if that fails.

    poll_s bounds how late an idle worker sees an expired lease; new jobs wake it at once.
    stall_s: an engine whose round takes longer counts as dead: its leases are let go, `check worker` fails.
    metrics_port 0 takes a free one; None serves no metrics.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "WORKER_")

    vlm: str = "embedded"
    twig: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = Field(None, ge=1)
    max_batch: int = Field(8, ge=1)
    max_image_tokens: int | None = Field(None, ge=1)
    image_fit: Literal["pad"] | None = None
    kv_cache_bytes: int | None = Field(None, ge=1)
    verify: bool = False
    fork_layer: int | None = None
    drop_layer: int | None = None
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    worker_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    poll_s: float = Field(4.0, gt=0)
    heartbeat_s: float = Field(5.0, gt=0)
    heartbeat_ttl_s: float = Field(15.0, gt=0)
    drain_s: float = Field(20.0, ge=0)
    stall_s: float = Field(120.0, gt=0)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(9100, ge=0, le=65_535)


class LogSettings(_Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX + "LOG_")

    level: str = Field("info", pattern="^(debug|info|warning|error)$")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def known_variables() -> frozenset[str]:
    names: set[str] = set()
    for settings in (RedisSettings, TracingSettings, GatewaySettings, WorkerSettings, LogSettings):
        prefix = str(settings.model_config["env_prefix"])
        names |= {(prefix + field).upper() for field in settings.model_fields}
    return frozenset(names)


def unknown_variables(environ: Any) -> list[str]:
    names = {name.upper() for name in environ if name.upper().startswith(ENV_PREFIX)}
    return sorted(names - known_variables())


def explicit_redis_url() -> str | None:
    """The Redis the environment names, None where it names none (then the launcher starts its own)."""
    return os.environ.get(ENV_PREFIX + "REDIS_URL")
