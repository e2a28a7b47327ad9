"""Where waiting requests become running ones: memory, pictures, prompts.

Invariant: a generation that leaves the queue here either runs or is handed to `ended`, in the queue's order.
Knows the scheduler, the runner and the memory plan, not rounds or outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from model.generation import Generation
from model.memory import ByGroup, KvBudget
from model.runner import Runner
from model.scheduler import Scheduler

log = logging.getLogger(__name__)


class Entrance:
    def __init__(
        self, scheduler: Scheduler, runner: Runner, memory: KvBudget, clock: Callable[[], float]
    ) -> None:
        self._scheduler, self._runner, self._memory, self._clock = scheduler, runner, memory, clock

    def let_in(self, ended: Callable[[Generation], None]) -> None:
        """As many as there are slots and memory for. ended: takes those that end before they run."""
        self._look_ahead()
        while self._may_enter(ended) and (generation := self._scheduler.next_waiting()) is not None:
            generation.times.admit(self._clock())
            if self._prefill(generation):
                self._scheduler.join(generation)
            else:
                self._scheduler.forget(generation)
                ended(generation)

    def make_room(self, waiting: Sequence[ByGroup]) -> bool:
        """Whether the cache now has room for the first of them beside those that run."""
        slabs = self._memory.plan([g.prompt.kv for g in self._scheduler.running], waiting)
        if slabs is None:
            return False
        if slabs != self._memory.held:
            try:
                self._runner.cache.hold(slabs)
            finally:  # also where the machine has less memory than the budget says
                self._memory.held = self._runner.cache.held
        return True

    def _look_ahead(self) -> None:
        """Those that are about to join are seen at once."""
        scheduler = self._scheduler
        first = islice(scheduler.waiting, scheduler.free_slots)
        together = [g for g in first if g.may_be_seen_ahead]
        if len(together) < 2:
            return
        started = self._clock()
        try:
            sights = self._runner.encode_together([generation.prompt for generation in together])
        except Exception:  # whose fault it is shows when each is seen alone
            log.warning("vision of %d requests together failed", len(together), exc_info=True)
            for generation in together:
                generation.seen_alone = True
            return
        took_s = self._clock() - started
        for generation, sight in zip(together, sights, strict=True):
            generation.sight, generation.times.ahead_s = sight, took_s

    def _may_enter(self, ended: Callable[[Generation], None]) -> bool:
        """False where the first in line has to wait for memory; one whose memory cannot be had ends."""
        scheduler = self._scheduler
        while scheduler.waiting and scheduler.free_slots:
            waiting = [g.prompt.kv for g in islice(scheduler.waiting, scheduler.slots)]
            try:
                return self.make_room(waiting)
            except Exception as error:
                log.exception("no memory for request %s", scheduler.waiting[0].request_id)
                generation = scheduler.waiting.popleft()
                if generation.finish_reason is None:
                    generation.fail(error)
                scheduler.forget(generation)
                ended(generation)
        return True

    def _prefill(self, generation: Generation) -> bool:
        """Vision and prompt; False if that failed, or where nothing is left to be said.

        An answer that was whole when it was resumed is read too: its result tells what was kept.
        """
        whole, prompt = generation.finish_reason is not None, generation.prompt
        if whole:
            prompt = replace(prompt, resume_token_ids=())
        try:
            sight, generation.sight = generation.sight, None
            if sight is None:
                sight = self._runner.encode(prompt)
                generation.times.encoded = self._clock()
            prefilled = self._runner.prefill(prompt, sight)
        except Exception as error:
            log.exception("prefill of request %s failed", generation.request_id)
            if not whole:
                generation.fail(error)
            return False
        generation.kept_indices, generation.token_scores = prefilled.kept_indices, prefilled.token_scores
        generation.prefilled(prefilled.pending, prefilled.vector, self._clock())
        if whole:
            self._runner.cache.release(prefilled.slot)
        return not whole
