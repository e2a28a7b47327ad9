"""Who asks: the API key's name and what it may do.

Must not know: how keys are kept or checked (`keys`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from service.errors import Forbidden
from service.protocol import Priority
from service.schemas import ServiceTier

TIERS: dict[ServiceTier, Priority] = {"default": "interactive", "flex": "batch"}


@dataclass(frozen=True)
class Caller:
    """name: of the key, empty where none are used. None: no limit. priorities: the first is the default."""

    name: str = ""
    requests_per_minute: int | None = None
    tokens_in_flight: int | None = None
    priorities: tuple[Priority, ...] = ("interactive", "batch")


ANONYMOUS = Caller()


def caller_of(request: Request) -> Caller:
    """Anonymous where the application does not ask for keys."""
    caller: Caller = getattr(request.state, "caller", ANONYMOUS)
    return caller


def priority_of(tier: ServiceTier, caller: Caller) -> Priority:
    if tier == "auto":
        return caller.priorities[0]
    if TIERS[tier] not in caller.priorities:
        raise Forbidden(
            f"This API key may not ask for 'service_tier' {tier}.",
            param="service_tier",
            code="service_tier_not_allowed",
        )
    return TIERS[tier]


def tier_of(priority: Priority) -> ServiceTier:
    return "flex" if priority == "batch" else "default"
