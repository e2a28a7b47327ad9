"""The order of service, as properties of the claim script on a real Redis."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.protocol import Priority
from service.settings import RedisSettings
from tests.contract.policy import Queue

COSTS = st.lists(st.integers(1, 1000), min_size=4, max_size=12)
FIXTURE = HealthCheck.function_scoped_fixture
quickly = settings(max_examples=15, deadline=None, suppress_health_check=[FIXTURE])


@dataclass(frozen=True)
class Asked:
    owner: str
    tokens: int
    priority: Priority = "interactive"


@contextlib.contextmanager
def queue_of(redis: RedisSettings, **shares: float) -> Iterator[Queue]:
    queue = Queue(redis, shares)
    try:
        yield queue
    finally:
        queue.close()


def drain(queue: Queue, waiting: dict[str, Asked]) -> Iterator[Asked]:
    while (job_id := queue.claim()) is not None:
        yield waiting.pop(job_id)
    assert not waiting


@quickly
@given(costs=st.lists(COSTS, min_size=2, max_size=4))
def test_backlogged_owners_are_never_further_apart_than_a_job_each(
    redis_settings: RedisSettings, costs: list[list[int]]
) -> None:
    with queue_of(redis_settings) as queue:
        waiting = {}
        for number, own in enumerate(costs):
            for tokens in own:
                waiting[queue.submit(f"o{number}", tokens)] = Asked(f"o{number}", tokens)
        left = Counter(asked.owner for asked in waiting.values())
        given_to: Counter[str] = Counter()
        for asked in drain(queue, waiting):
            given_to[asked.owner] += asked.tokens
            left[asked.owner] -= 1
            backlogged = [given_to[owner] for owner in left if left[owner]]
            if backlogged:
                assert max(backlogged) - min(backlogged) <= 2 * max(map(max, costs))


@quickly
@given(costs=COSTS)
def test_an_owner_is_served_first_in_first_out(redis_settings: RedisSettings, costs: list[int]) -> None:
    with queue_of(redis_settings) as queue:
        ids = [queue.submit("a", tokens) for tokens in costs]
        assert [queue.claim() for _ in ids] == ids
        assert queue.claim() is None


@quickly
@given(share=st.sampled_from([0.1, 0.25, 0.5]), interactive=COSTS, batch=COSTS)
def test_batch_work_gets_its_share_and_no_more_while_interactive_work_waits(
    redis_settings: RedisSettings, share: float, interactive: list[int], batch: list[int]
) -> None:
    with queue_of(redis_settings, batch_share=share) as queue:
        waiting = {queue.submit("a", n): Asked("a", n) for n in interactive}
        waiting |= {queue.submit("b", n, "batch"): Asked("b", n, "batch") for n in batch}
        left = Counter(asked.priority for asked in waiting.values())
        given_to: Counter[str] = Counter()
        largest = max([*interactive, *batch])
        for asked in drain(queue, waiting):
            given_to[asked.priority] += asked.tokens
            left[asked.priority] -= 1
            if left["batch"] and left["interactive"]:
                fair = share * given_to.total()
                assert abs(given_to["batch"] - fair) <= largest


@quickly
@given(before=COSTS, rest=COSTS, newcomers=COSTS)
def test_idle_time_earns_no_credit(
    redis_settings: RedisSettings, before: list[int], rest: list[int], newcomers: list[int]
) -> None:
    """Who comes late shares from then on; it may not catch up with what others had while it was away."""
    with queue_of(redis_settings) as queue:
        old = {queue.submit("old", n): Asked("old", n) for n in [*before, *rest]}
        for _ in before:
            old.pop(str(queue.claim()))
        waiting = old | {queue.submit("new", n): Asked("new", n) for n in newcomers}
        left = Counter(asked.owner for asked in waiting.values())
        given_to: Counter[str] = Counter()
        for asked in drain(queue, waiting):
            given_to[asked.owner] += asked.tokens
            left[asked.owner] -= 1
            if left["old"] and left["new"]:
                assert abs(given_to["old"] - given_to["new"]) <= 2 * max([*before, *rest, *newcomers])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "submit", "cancel", "claim", "give_back"]),
        st.sampled_from(["a", "b", ""]),
        st.integers(1, 99),
    ),
    min_size=5,
    max_size=40,
)


class Ledger:
    """What the queue should have on its books: job -> (owner, tokens)."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.reserved: dict[str, tuple[str, int]] = {}
        self.waiting: set[str] = set()

    def sums(self) -> dict[str, int]:
        by_owner: Counter[str] = Counter()
        for owner, tokens in self.reserved.values():
            by_owner["owner:" + owner] += tokens
        waiting = sum(self.reserved[job_id][1] for job_id in self.waiting)
        sums = {"all": by_owner.total(), "waiting": waiting, **by_owner}
        return {name: tokens for name, tokens in sums.items() if tokens}

    def admit(self, job_id: str, owner: str, tokens: int) -> None:
        assert self.queue.admit(job_id, tokens, owner)
        self.reserved[job_id] = owner, tokens

    def submit(self, job_id: str, owner: str, tokens: int) -> None:
        self.queue.submit(owner, tokens, "batch" if tokens % 2 else "interactive", job_id)
        self.reserved[job_id] = owner, tokens
        self.waiting.add(job_id)

    def claim(self, *_: object) -> None:
        ended = self.queue.claim()
        assert (ended is None) == (not self.waiting)
        if ended is not None:
            self._ended(ended)

    def cancel(self, *_: object) -> None:
        target = min(self.waiting, default="")
        self.queue.run("cancel", target)
        self._ended(target)

    def give_back(self, *_: object) -> None:
        target = min(self.reserved, default="")
        self.queue.run("give_back", target)
        if target not in self.waiting:
            self._ended(target)

    def _ended(self, job_id: str) -> None:
        self.reserved.pop(job_id, None)
        self.waiting.discard(job_id)


@quickly
@given(steps=STEPS)
def test_the_ledger_is_the_sum_of_what_is_unfinished(
    redis_settings: RedisSettings, steps: list[tuple[str, str, int]]
) -> None:
    with queue_of(redis_settings) as queue:
        ledger = Ledger(queue)
        for number, (what, owner, tokens) in enumerate(steps):
            getattr(ledger, what)(f"job{number}", owner, tokens)
            assert queue.load() == ledger.sums()
        while ledger.waiting:
            ledger.claim()
        for job_id in sorted(ledger.reserved):  # admitted alone
            queue.run("give_back", job_id)
        assert queue.leftovers() == set()
