"""One load test in locust: a warm-up that measures what the service can do, then the scenario's arrivals.

Open loop: nobody waits for an answer before the next request, so a service that falls behind is not spared.
Locust keeps its statistics and charts; the samples are ours. Needs gevent's patches.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import gevent
from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from loadtest.client import Client
from loadtest.pictures import pictures
from loadtest.sample import Sample
from loadtest.scenarios import Ask, Scenario

WARMERS = 8
DRAIN_S = 60.0


@dataclass(frozen=True)
class Plan:
    """rate_per_s: None for the scenario's share of what the warm-up measures."""

    url: str
    scenario: Scenario
    seconds: float
    warmup_s: float
    rate_per_s: float | None
    seed: int = 0


@dataclass
class Outcome:
    samples: list[Sample]
    rate_per_s: float
    seconds: float
    locust_html: str


def run(plan: Plan) -> Outcome:
    encoded = pictures()
    warm_per_s = _warm_up(plan, encoded)
    rate_per_s = plan.rate_per_s or max(0.05, plan.scenario.share * warm_per_s)
    seconds = plan.seconds - plan.warmup_s
    rng = random.Random(plan.seed)
    asks = [(at, plan.scenario.ask(rng)) for at in plan.scenario.arrivals(rng, rate_per_s, seconds)]
    samples: list[Sample] = []
    environment = Environment(user_classes=[_arrivals(plan.url, encoded, asks, samples)], host=plan.url)
    runner = environment.create_local_runner()
    history = gevent.spawn(stats_history, runner)
    runner.start(user_count=1, spawn_rate=1)
    runner.greenlet.join(timeout=seconds + DRAIN_S)
    runner.quit()
    history.kill()
    html = get_html_report(environment, show_download_link=False)
    return Outcome(samples, rate_per_s, seconds, html)


def _warm_up(plan: Plan, encoded: list[str]) -> float:
    """Answers a second with WARMERS clients that each wait for theirs."""
    began = time.monotonic()
    client = Client(plan.url, encoded, began)
    rng = random.Random(plan.seed + 1)
    answered: list[Sample] = []

    def ask_again() -> None:
        while time.monotonic() - began < plan.warmup_s:
            sample = client.send(plan.scenario.ask(rng), time.monotonic() - began)
            if sample.error is None:
                answered.append(sample)
            else:
                gevent.sleep(0.5)

    group = Group()
    for _ in range(WARMERS):
        group.spawn(ask_again)
    group.join(timeout=plan.warmup_s + DRAIN_S)
    if not answered:
        raise SystemExit(f"loadtest: {plan.url} answered nothing within {plan.warmup_s + DRAIN_S:g} s")
    return len(answered) / max(sample.end_s for sample in answered)


def _arrivals(
    url: str, encoded: list[str], asks: list[tuple[float, Ask]], samples: list[Sample]
) -> type[User]:
    class Arrivals(User):  # type: ignore[misc]
        """The one locust user: sends each request when it is due, and waits for answers only at the end."""

        @task
        def send_all(self) -> None:
            began = time.monotonic()
            client = Client(url, encoded, began)
            self._open: set[float] = set()
            group = Group()
            for at, ask in asks:
                gevent.sleep(max(0.0, at - (time.monotonic() - began)))
                self._open.add(at)
                group.spawn(self._send, client, ask, at)
            group.join(timeout=DRAIN_S)
            group.kill()
            ended_s = time.monotonic() - began
            samples.extend(Sample(at, ended_s, "unfinished") for at in sorted(self._open))
            self.environment.runner.quit()

        def _send(self, client: Client, ask: Ask, at: float) -> None:
            sample = client.send(ask, at)
            samples.append(sample)
            self._open.discard(at)
            self._tell("whole answer", sample.e2e_s, sample)
            if sample.ttft_s is not None:
                self._tell("first token", sample.ttft_s, sample)

        def _tell(self, name: str, seconds: float, sample: Sample) -> None:
            self.environment.events.request.fire(
                request_type="describe",
                name=name,
                response_time=1000 * seconds,
                response_length=sample.tokens,
                exception=None if sample.error is None else RuntimeError(sample.error),
                context={},
            )

    return Arrivals
