"""The names of everything that is kept in Redis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """Every Redis key of one queue; the hash tag keeps them on one shard."""

    shard: str = "q"

    @property
    def prefix(self) -> str:
        return "{" + self.shard + "}:"

    @property
    def jobs(self) -> str:
        return self.prefix + "jobs"

    @property
    def dead(self) -> str:
        return self.prefix + "dead"

    @property
    def wake(self) -> str:
        """A list with one element a submitted or released job: idle workers block on it."""
        return self.prefix + "wake"

    def wakes(self, model: str) -> list[str]:
        """The lists on which a worker of this model blocks: its own, and the one that wakes any."""
        return [f"{self.wake}:{model}", self.wake] if model else [self.wake]

    @property
    def workers(self) -> str:
        """The set of worker ids that may be alive; `worker(id)` with its TTL decides."""
        return self.prefix + "workers"

    @property
    def generation(self) -> str:
        """The name of the data in this server, see `data_name` in common.lua."""
        return self.prefix + "generation"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self.prefix}events:{job_id}"

    def idempotency(self, key: str) -> str:
        return f"{self.prefix}idempotency:{key}"

    def blob(self, sha256: str) -> str:
        return f"{self.prefix}blob:{sha256}"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}worker:{worker_id}"

    def inbox(self, gateway_id: str) -> str:
        """A stream of one entry: a gateway wakes its own blocked reader through it."""
        return f"{self.prefix}gateway:{gateway_id}"
