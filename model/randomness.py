"""How a request is sampled, and its randomness: a function of (seed, output position, purpose). No torch.

Invariant: the same seed and position give the same numbers in any batch, round, process or machine, so that
a request resumed elsewhere goes on as it would have gone on here.
Knows nothing of distributions or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from model.request import SamplingParams

MAX_SEED = 2**64 - 1
# Dividing logits by less overflows them; nothing but the best token is left long before.
GREEDY_BELOW = 1e-5

_BYTES = 6
_STEP = 2.0 ** (-8 * _BYTES)


@dataclass(frozen=True)
class Uniforms:
    """Independent numbers in (0, 1), for the three things that chance decides at one output position."""

    draft: float
    accept: float
    resample: float


@dataclass(frozen=True)
class Sampler:
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def uniforms(self, position: int) -> Uniforms:
        """position: of the token in the answer, from 0, tokens of earlier attempts included."""
        word = self.seed.to_bytes(8, "little") + position.to_bytes(8, "little")
        digest = blake2b(word, digest_size=3 * _BYTES, person=b"twigserve").digest()
        draft, accept, resample = (
            (int.from_bytes(digest[at : at + _BYTES], "little") + 0.5) * _STEP
            for at in range(0, 3 * _BYTES, _BYTES)
        )
        return Uniforms(draft, accept, resample)


@dataclass(frozen=True)
class Draw:
    """How a running row's next tokens are drawn: the first of them has this position in the answer.

    coupled: against the twig's distribution, at every position and not at drafted ones alone (`sampling`).
    """

    sampler: Sampler
    position: int
    coupled: bool

    def uniforms(self, step: int) -> Uniforms:
        return self.sampler.uniforms(self.position + step)


def seed_of(name: str) -> int:
    """The seed of a request that brings none: the same for the same name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"twigserve").digest(), "little")


def sampler_of(sampling: SamplingParams, request_id: str) -> Sampler | None:
    """None for a greedy request."""
    if sampling.temperature < GREEDY_BELOW:
        return None
    seed = seed_of(request_id) if sampling.seed is None else sampling.seed
    return Sampler(sampling.temperature, sampling.top_k, sampling.top_p, seed)
