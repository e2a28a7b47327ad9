"""Who waits, who runs: first come, first served, as many as there are slots. No torch.

Invariant: running sequences hold slots 0..n-1 in order of the list, as the cache's do: when one leaves,
the last takes its place. Knows nothing of tensors, tokens or time.
"""

from __future__ import annotations

from collections import deque

from model.generation import Generation


class Scheduler:
    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # index = slot
        self._aborting: set[str] = set()
        self._known: set[str] = set()

    def knows(self, request_id: str) -> bool:
        return request_id in self._known

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.running)

    def queue(self, generation: Generation) -> None:
        self._known.add(generation.request_id)
        self.waiting.append(generation)

    def abort(self, request_id: str) -> None:
        """Takes effect when `take_aborted` is next called; an unknown id has already left."""
        if request_id in self._known:
            self._aborting.add(request_id)

    def take_aborted(self) -> tuple[list[Generation], list[int]]:
        """Aborted sequences that waited (they have left), and the slots of those that run (they have not)."""
        if not self._aborting:
            return [], []
        waited = [g for g in self.waiting if g.request_id in self._aborting]
        self.waiting = deque(g for g in self.waiting if g.request_id not in self._aborting)
        slots = [slot for slot, g in enumerate(self.running) if g.request_id in self._aborting]
        for generation in waited:
            self.forget(generation)
        return waited, slots

    def next_waiting(self) -> Generation | None:
        """The next to be prefilled; it has left the queue and must `join` or be forgotten."""
        return self.waiting.popleft() if self.waiting and self.free_slots else None

    def join(self, generation: Generation) -> None:
        if not self.free_slots:
            raise AssertionError("no free slot to join")
        self.running.append(generation)

    def leave(self, slot: int) -> Generation:
        """Removes a running sequence; the last one moves into its slot."""
        generation, last = self.running[slot], self.running.pop()
        if slot < len(self.running):
            self.running[slot] = last
        self.forget(generation)
        return generation

    def clear(self) -> None:
        """Nobody waits or runs any more, and nobody is told."""
        self.waiting.clear()
        self.running.clear()
        self._known.clear()
        self._aborting.clear()

    def forget(self, generation: Generation) -> None:
        self._known.discard(generation.request_id)
        self._aborting.discard(generation.request_id)
