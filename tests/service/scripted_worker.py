"""A worker without an engine: it claims real jobs from the real queue and plays the events a test wants.

`script(job)` gives the rounds and the end; `hold()` makes it wait before each round until `resume()`.
What it saw is in `jobs`, `blobs` and `cancelled`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from service.broker.base import Claim
from service.broker.redis import RedisWorkerBroker
from service.protocol import (
    DoneData,
    ErrorData,
    Event,
    Job,
    Message,
    ModelCard,
    StartedData,
    TokenData,
    WorkerInfo,
)
from service.settings import RedisSettings

CARD = ModelCard.model_validate(
    {
        "model_id": "scripted",
        "family": "llava",
        "image": {"height": 24, "width": 24, "fit": "stretch"},
        "image_tokens": 36,
        "grid": [6, 6],
        "layers": 8,
        "max_images": 2,
        "max_model_len": 512,
        "quality": {"fast": 8, "balanced": 16, "exact": 36},
        "retained_min": 4,
        "retained_max": 30,
        "default_retained": 8,
        "speculation": True,
        "takes_turns": True,
    }
)
WORDS = ("A", " small", " red", " apple.")
Script = Callable[[Job], "tuple[list[TokenData], DoneData | ErrorData]"]


def apple(job: Job) -> tuple[list[TokenData], DoneData | ErrorData]:
    """Four rounds of one token; every number of the answer is distinct, so that a mix-up shows."""
    tokens = [TokenData(text=word, token_ids=(i,), drafted=(i % 2 == 1,)) for i, word in enumerate(WORDS)]
    seen = (
        {"grid": (6, 6), "kept_indices": (1, 5, 9), "token_scores": (0.5,) * 36}
        if job.params.token_map
        else {}
    )
    done = DoneData(
        text="".join(WORDS),
        token_ids=(0, 1, 2, 3),
        finish_reason="stop",
        model=CARD.model_id,
        prompt_tokens=50,
        image_tokens=36,
        kept_tokens=3,
        retained_tokens=job.params.retained_tokens or 8,
        draft_rounds=4,
        draft_tokens=10,
        accepted_tokens=6,
        batch_size=2,
        queue_s=0.001,
        encode_s=0.002,
        prefill_s=0.003,
        decode_s=0.5,
        ttft_s=0.006,
        **seen,
    )
    return tokens, done


def failing(error: ErrorData) -> Script:
    return lambda job: ([], error)


class ScriptedWorker:
    def __init__(self, settings: RedisSettings, card: ModelCard = CARD, script: Script = apple) -> None:
        self.script = script
        self.card = card
        self.jobs: list[Job] = []
        self.blobs: list[bytes | None] = []
        self.cancelled: list[str] = []
        self._broker = RedisWorkerBroker(settings)
        self._go = threading.Event()
        self._go.set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ScriptedWorker:
        self.heartbeat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._go.set()
        self._thread.join()
        self._broker.close()

    def hold(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def heartbeat(self, **fields: Any) -> None:
        info = {"worker_id": "w1", "started_at": time.time(), "max_slots": 4, "free_slots": 4} | fields
        self._broker.heartbeat(WorkerInfo(card=self.card, **info), ttl_s=60)

    def _run(self) -> None:
        while not self._stopped.is_set():
            for claim in self._broker.claim(1).claims:
                self._play(claim)
            self._stopped.wait(0.01)  # unlike a blocking pop it ends at once

    def _play(self, claim: Claim) -> None:
        self.jobs.append(claim.job)
        self.blobs += self._broker.blobs([image.sha256 for image in claim.job.images])
        tokens, end = self.script(claim.job)
        seq = claim.last_seq
        rounds: list[tuple[str, Message]] = [("started", StartedData(worker_id="w1"))]
        rounds += [("token", data) for data in tokens]
        for kind, data in rounds:
            if kind == "token" and self._cancelled(claim):
                end = ErrorData(message="cancelled", code="cancelled")
                break
            seq += 1
            self._broker.publish(claim.lease, [self._event(claim, seq, kind, data)])
        kind = "done" if isinstance(end, DoneData) else "error"
        self._broker.finish(claim.lease, [self._event(claim, seq + 1, kind, end)])

    def _cancelled(self, claim: Claim) -> bool:
        """Looks while it is held, as a worker's lease thread does."""
        while True:
            _, cancelled = self._broker.renew([claim.lease])
            if cancelled:
                self.cancelled.append(claim.job.id)
                return True
            if self._go.wait(0.02) or self._stopped.is_set():
                return False

    def _event(self, claim: Claim, seq: int, kind: Any, data: Message) -> Event:
        return Event(seq=seq, attempt=claim.lease.attempt, type=kind, data=data.model_dump(mode="json"))
