"""What a load test sends and when: arrivals that do not wait for answers, and a question each.

Invariant: the same seed gives the same load. Knows neither HTTP nor the clock: times count from the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PICTURES = 64
TIERS = ("fast", "balanced", "best", "exact")
PROMPTS = ("Describe the image.", "What is in the picture?", "Where is the largest object?")
BURST_EVERY_S = 20.0
RAMP = (0.25, 2.0)  # of the given rate, from the start to the end
SLOW_SHARE = 0.3

Arrivals = Callable[[random.Random, float, float], Iterator[float]]


@dataclass(frozen=True)
class Ask:
    """picture: 0 .. PICTURES-1. read_pause_s: how long the client sleeps after each event that it reads."""

    picture: int
    prompt: str = PROMPTS[0]
    max_tokens: int = 64
    quality: str | None = None
    read_pause_s: float = 0.0


def poisson(rng: random.Random, rate_per_s: float, seconds: float) -> Iterator[float]:
    at = rng.expovariate(rate_per_s)
    while at < seconds:
        yield at
        at += rng.expovariate(rate_per_s)


def ramp(rng: random.Random, rate_per_s: float, seconds: float) -> Iterator[float]:
    """A Poisson process whose rate grows evenly: arrivals at the highest rate, thinned."""
    low, high = RAMP
    for at in poisson(rng, high * rate_per_s, seconds):
        if rng.random() < (low + (high - low) * at / seconds) / high:
            yield at


def bursts(rng: random.Random, rate_per_s: float, seconds: float) -> Iterator[float]:
    """Half of the load comes evenly, the other half at once, every BURST_EVERY_S."""
    together = round(0.5 * rate_per_s * BURST_EVERY_S)
    moments = [BURST_EVERY_S * (number + 0.5) for number in range(int(seconds // BURST_EVERY_S))]
    # A millisecond apart, so that each is an arrival of its own.
    sudden = [moment + number / 1000 for moment in moments for number in range(together)]
    yield from sorted([*poisson(rng, 0.5 * rate_per_s, seconds), *sudden])


def usual(rng: random.Random) -> Ask:
    return Ask(rng.randrange(PICTURES), rng.choice(PROMPTS))


def long_answers(rng: random.Random) -> Ask:
    return Ask(rng.randrange(PICTURES), max_tokens=512)


def repeated(rng: random.Random) -> Ask:
    return Ask(0, rng.choice(PROMPTS))


def mixed(rng: random.Random) -> Ask:
    return Ask(rng.randrange(PICTURES), rng.choice(PROMPTS), rng.choice((16, 64, 256)), rng.choice(TIERS))


def slow_readers(rng: random.Random) -> Ask:
    pause_s = 0.25 if rng.random() < SLOW_SHARE else 0.0
    return Ask(rng.randrange(PICTURES), read_pause_s=pause_s)


@dataclass(frozen=True)
class Scenario:
    """share: of the rate that the warm-up measured, where no rate is given."""

    name: str
    text: str
    arrivals: Arrivals
    ask: Callable[[random.Random], Ask]
    share: float = 0.7


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("steady", "Poisson arrivals at an even rate.", poisson, usual),
        Scenario("ramp", "From a quarter of the rate to twice it, until it is too much.", ramp, usual, 1.0),
        Scenario("burst", "Half of the load evenly, half of it at once every 20 s.", bursts, usual),
        Scenario("long", "Answers of up to 512 tokens.", poisson, long_answers, 0.5),
        Scenario("repeated", "One picture, again and again.", poisson, repeated),
        Scenario("mixed", "All quality tiers, short and long answers.", poisson, mixed),
        Scenario("slow", "Three clients in ten read slowly.", poisson, slow_readers),
    )
}
