"""A scripted worker for the playground: describes the bundled bees, round by round, as far as a test lets it.

What it sends has the shape of the real engine's events (rounds of drafted tokens and one of the verifier's
own, R' best scores kept), so that the page can be looked at without a model.
"""

from __future__ import annotations

import math
import threading
from typing import Any

from service.broker.base import Claim
from service.protocol import DoneData, ErrorData, Job, ModelCard, TokenData, WorkerInfo
from service.settings import RedisSettings
from tests.service.scripted_worker import ScriptedWorker

GRID = 24
PATCHES = GRID * GRID
LAYERS, FORK_LAYER, DROP_LAYER = 16, 1, 12
CARD = ModelCard.model_validate(
    {
        "model_id": "scripted-scenes",
        "family": "llava",
        "image": {"height": 192, "width": 192, "fit": "stretch"},
        "image_tokens": PATCHES,
        "grid": [GRID, GRID],
        "layers": LAYERS,
        "max_images": 1,
        "max_model_len": 1024,
        "quality": {"fast": 64, "balanced": 128, "best": 192, "exact": PATCHES},
        "retained_min": 36,
        "retained_max": 432,
        "default_retained": 64,
        "speculation": True,
    }
)
TEXT = (
    "The picture shows four objects on a shaded red background. At the top left there is a small bee. "
    "At the top there is a large kite. At the bottom left there is a small bee. "
    "At the bottom there is a large bee."
)
# Row, column and strength of what stands in the picture.
OBJECTS = ((4.5, 4, 1.0), (3.5, 10.5, 1.3), (20, 5.5, 0.9), (19.5, 12, 1.5))
# Accepted drafts of one round after the other, again and again.
ACCEPTED = (5, 4, 2, 5, 0, 3)
ALL_ROUNDS = 10_000
HEARTBEAT_TTL_S = 600


class SteppedWorker(ScriptedWorker):
    """Plays only as many rounds as `allow` has let through."""

    def __init__(self, settings: RedisSettings, cancel_seen: threading.Event | None = None) -> None:
        super().__init__(settings, CARD, describe_scene)
        self._cancel_seen = cancel_seen or threading.Event()
        self._rounds = threading.Semaphore(0)

    def heartbeat(self, **fields: Any) -> None:
        """Long, as it is sent only once and a loaded machine may take minutes over a test."""
        info = {"worker_id": "w1", "started_at": 0.0, "max_slots": 4, "free_slots": 4} | fields
        self._broker.heartbeat(WorkerInfo(card=self.card, **info), HEARTBEAT_TTL_S)

    def allow(self, rounds: int = ALL_ROUNDS) -> None:
        self._rounds.release(rounds)

    def _cancelled(self, claim: Claim) -> bool:
        while not self._rounds.acquire(timeout=0.02):
            _, cancelled = self._broker.renew([claim.lease])
            if cancelled:
                self.cancelled.append(claim.job.id)
                self._cancel_seen.set()
                return True
            if self._stopped.is_set():
                return True
        return super()._cancelled(claim)


def describe_scene(job: Job) -> tuple[list[TokenData], DoneData | ErrorData]:
    words = TEXT.split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:])][: job.params.max_tokens]
    rounds = split_rounds(pieces, job.params.speculation)
    return rounds, _done(job, pieces, rounds)


def split_rounds(pieces: list[str], speculation: bool) -> list[TokenData]:
    rounds: list[TokenData] = []
    at = 0
    while at < len(pieces):
        drafts = ACCEPTED[len(rounds) % len(ACCEPTED)] if speculation and rounds else 0
        part = pieces[at : at + drafts + 1]
        drafted = tuple(i < drafts for i in range(len(part)))
        ids = tuple(range(at, at + len(part)))
        rounds.append(
            TokenData.model_validate(
                {"text": "".join(part), "token_ids": ids, "drafted": drafted, "pieces": part}
            )
        )
        at += len(part)
    return rounds


def scores() -> list[float]:
    def at(row: int, column: int) -> float:
        near = (s * math.exp(-((row - r) ** 2 + (column - c) ** 2) / 6) for r, c, s in OBJECTS)
        return 0.0002 + 0.01 * sum(near) + 0.0004 * ((row * 7 + column * 13) % 11) / 11

    return [at(row, column) for row in range(GRID) for column in range(GRID)]


def kept_indices(retained: int) -> list[int]:
    if retained == PATCHES:
        return list(range(PATCHES))
    budget = math.ceil((LAYERS * retained - FORK_LAYER * PATCHES) / (DROP_LAYER - FORK_LAYER))
    ranked = scores()
    return sorted(sorted(range(PATCHES), key=lambda i: (-ranked[i], i))[:budget])


def _done(job: Job, pieces: list[str], rounds: list[TokenData]) -> DoneData:
    retained = job.params.retained_tokens or CARD.default_retained
    kept = kept_indices(retained)
    accepted = sum(sum(part.drafted) for part in rounds)
    speculation, pruned = job.params.speculation, retained != PATCHES
    return DoneData(
        text="".join(pieces),
        token_ids=tuple(range(len(pieces))),
        finish_reason="length" if len(pieces) == job.params.max_tokens else "stop",
        model=CARD.model_id,
        prompt_tokens=PATCHES + 14,
        image_tokens=PATCHES,
        kept_tokens=len(kept),
        retained_tokens=retained,
        draft_rounds=len(rounds) if speculation else 0,
        draft_tokens=accepted + len(rounds) // 2 if speculation else 0,
        accepted_tokens=accepted,
        queue_s=0.001,
        encode_s=0.018,
        prefill_s=0.025 if pruned else 0.041,
        decode_s=0.21 if speculation else 0.52,
        ttft_s=0.045,
        grid=(GRID, GRID) if job.params.token_map else None,
        kept_indices=tuple(kept) if job.params.token_map else None,
        token_scores=tuple(scores()) if job.params.token_map and pruned else None,
    )
