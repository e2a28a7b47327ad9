"""The queue's order of service, one call at a time: a gateway's and a worker's scripts on a real Redis."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import cast

from service.broker.connection import script_header, script_source, sync_client
from service.broker.redis import RedisWorkerBroker
from service.protocol import Event, Keys, Priority
from service.settings import RedisSettings
from tests.contract.conftest import done, make_job

NO_LIMIT = 10**12


@dataclass
class Queue:
    """A fresh one: nothing of it is seen by another."""

    settings: RedisSettings
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shard = f"p{uuid.uuid4().hex[:12]}"
        self.settings = self.settings.model_copy(update={"shard": shard, "lease_s": 60, **self.shares})
        self.keys = Keys(shard)
        self.client = sync_client(self.settings)
        self.worker = RedisWorkerBroker(self.settings)
        self._header = script_header(self.keys, self.settings)
        names = ("admit", "give_back", "submit", "cancel", "expire")
        self._scripts = {name: self.client.register_script(script_source(name)) for name in names}

    def run(self, name: str, *args: str | int) -> object:
        return self._scripts[name](keys=[self.keys.jobs], args=[*self._header, *args])

    def admit(self, job_id: str, tokens: int, owner: str = "", limit: int = NO_LIMIT) -> bool:
        which, *_ = cast("list[int]", self.run("admit", job_id, tokens, owner, limit, 0, 60_000))
        return which == 0

    def submit(self, owner: str, tokens: int, priority: Priority = "interactive", job_id: str = "") -> str:
        job = make_job(owner=owner, predicted_tokens=tokens, priority=priority)
        job = job.model_copy(update={"id": job_id or job.id})
        self.run("submit", job.id, job.encode(), "", "", "")
        return job.id

    def claim(self) -> str | None:
        """Takes one job and ends it."""
        batch = self.worker.claim(1)
        if not batch.claims:
            return None
        (claim,) = batch.claims
        events: list[Event] = [done(claim.lease.attempt, claim.last_seq + 1)]
        self.worker.finish(claim.lease, events)
        return claim.job.id

    def load(self) -> dict[str, int]:
        pairs = self.client.hgetall(self.keys.prefix + "load").items()  # type: ignore[union-attr]
        return {name.decode(): int(tokens) for name, tokens in pairs}

    def leftovers(self) -> set[str]:
        """Keys that a queue in which nothing is unfinished should not have."""
        names = {key.decode().removeprefix(self.keys.prefix) for key in self.client.scan_iter(match="*")}
        ours = {name for name in names if not name.startswith("{")}
        return {name for name in ours if not name.startswith(("job:", "events:", "jobs", "wake"))}

    def close(self) -> None:
        self.worker.close()
        self.client.close()
