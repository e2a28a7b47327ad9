"""JSON in and out, and the one version that both sides speak."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

WIRE_VERSION = 1


class UnsupportedVersion(ValueError):  # noqa: N818 - a state of the message
    """The message was written by a newer side whose meaning we cannot know."""


class Message(BaseModel):
    """JSON in and out; frozen; unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    def encode(self) -> str:
        return self.model_dump_json()

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        return cls.model_validate_json(raw)


class VersionedMessage(Message):
    v: int = WIRE_VERSION

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        message = super().decode(raw)
        if message.v > WIRE_VERSION:
            raise UnsupportedVersion(f"{cls.__name__} has wire version {message.v}, we read {WIRE_VERSION}")
        return message
