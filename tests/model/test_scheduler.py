"""The scheduler over any history of arrivals, aborts and endings: nobody lost, nobody twice, slots dense."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.detokenize import Detokenizer
from model.generation import Generation, Prompt, Times
from model.scheduler import Scheduler


def generation(name: str) -> Generation:
    prompt = Prompt([1], [], kept_tokens=0, pruned=False, retained_average=0.0, speculate=False)
    return Generation(name, prompt, 4, frozenset(), Detokenizer(None), Times(0.0))


class Histories(RuleBasedStateMachine):
    """The model is two plain lists of names; `slots` mirrors what the cache does when a slot is released."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.scheduler = Scheduler(slots)
        self.waiting: list[str] = []
        self.slots: list[str] = []
        self.arrived: list[str] = []
        self.left: list[str] = []

    @rule()
    def arrive(self) -> None:
        name = f"r{len(self.arrived)}"
        self.arrived.append(name)
        self.waiting.append(name)
        self.scheduler.queue(generation(name))

    @rule()
    def admit(self) -> None:
        """First come, first served, while there are slots."""
        taken = self.scheduler.next_waiting()
        if self.waiting and len(self.slots) < self.scheduler.slots:
            assert taken is not None
            assert taken.request_id == self.waiting[0]
            self.slots.append(self.waiting.pop(0))
            self.scheduler.join(taken)
        else:
            assert taken is None

    @precondition(lambda self: getattr(self, "slots", None))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self._leave(data.draw(st.integers(0, len(self.slots) - 1)))

    @precondition(lambda self: getattr(self, "arrived", None))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Of one who waits, runs or has long left."""
        self.scheduler.abort(data.draw(st.sampled_from(self.arrived)))

    @rule()
    def settle_aborts(self) -> None:
        waited, slots = self.scheduler.take_aborted()
        for gone in waited:
            self.waiting.remove(gone.request_id)
            self.left.append(gone.request_id)
        # From the highest slot down: leaving moves the last row into the hole.
        for slot in sorted(slots, reverse=True):
            self._leave(slot)
        assert self.scheduler.take_aborted() == ([], [])

    def _leave(self, slot: int) -> None:
        name, last = self.slots[slot], self.slots.pop()
        if name != last:
            self.slots[slot] = last
        assert self.scheduler.leave(slot).request_id == name
        self.left.append(name)

    @invariant()
    def nobody_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        assert [g.request_id for g in scheduler.waiting] == self.waiting
        assert [g.request_id for g in scheduler.running] == self.slots
        assert sorted(self.waiting + self.slots + self.left) == sorted(self.arrived)
        assert scheduler.has_work() == bool(self.waiting or self.slots)
        assert scheduler.free_slots == scheduler.slots - len(self.slots)
        for name in self.arrived:
            assert scheduler.knows(name) == (name not in self.left)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40)


def test_joining_without_a_slot_is_a_bug() -> None:
    scheduler = Scheduler(1)
    scheduler.join(generation("a"))
    with pytest.raises(AssertionError):
        scheduler.join(generation("b"))
