"""One request's life inside the engine: its prompt, its tokens so far, its counts and times. No torch.

Invariant: `tokens` only grows, and `finish_reason` is set once.
Knows nothing of caches, layers or other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.detokenize import Detokenizer
from model.memory import NOTHING, ByGroup
from model.randomness import Draw, Sampler
from model.request import FinishReason, Result, StepOutput
from model.speculative import draft_budget, until_eos
from model.stops import StopStrings

if TYPE_CHECKING:
    from model.adapters.base import Pixels, Positions


@dataclass(frozen=True)
class Prompt:
    """A checked prompt: expanded ids, the visual positions in them, and the pruning budget.

    kept_tokens: R' (M where pruning is off). retained_average: what R' makes of R-bar, over all layers.
    kv: the tokens of the whole sequence in each cache group, when it is longest.
    grids: [rows, columns] of each image, None where its tokens are no grid.
    pixels, images: what the adapter has prepared, or raw pictures that it still has to prepare.
    positions: rotary positions where they are not 0..P-1.
    """

    token_ids: list[int]
    visual: list[int]
    kept_tokens: int
    pruned: bool
    retained_average: float
    speculate: bool
    kv: ByGroup = NOTHING
    resume_token_ids: tuple[int, ...] = ()
    grids: tuple[tuple[int, int] | None, ...] = ()
    pixels: Pixels | None = None
    images: tuple[Any, ...] = ()
    positions: Positions | None = None

    @property
    def shift(self) -> int:
        """What is added to the count of tokens so far to get the rotary position of the next one."""
        return 0 if self.positions is None else self.positions.shift


@dataclass
class Times:
    """Clock readings, in seconds; None until it happened. ahead_s: what vision took before admission."""

    added: float
    admitted: float | None = None
    encoded: float | None = None
    prefilled: float | None = None
    first_token: float | None = None
    ahead_s: float | None = None

    def admit(self, now: float) -> None:
        """What was seen while it waited is counted as if it had been seen last: waiting ends before that."""
        if self.ahead_s is None:
            self.admitted = now
        else:
            self.admitted, self.encoded = now - self.ahead_s, now


@dataclass
class Generation:
    """pending: the last token, which no cache holds yet; vector stands for it where it is visual.

    sampler: None where the request is greedy.
    sight: what vision gave for the prefill, where it looked ahead.
    seen_alone: vision has failed over several pictures of which these are some: it looks ahead no more.
    unread: the last tokens before the pending one that the base has read and the twig has not.
    """

    request_id: str
    prompt: Prompt
    max_tokens: int
    eos: frozenset[int]
    detokenizer: Detokenizer
    times: Times
    sampler: Sampler | None = None
    stops: StopStrings = field(default_factory=lambda: StopStrings(()))
    tokens: list[int] = field(default_factory=list)
    pending: int = -1
    vector: Any = None
    sight: Any = None
    seen_alone: bool = False
    unread: list[int] = field(default_factory=list)
    kept_indices: list[int] = field(default_factory=list)
    token_scores: list[float] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    draft_rounds: int = 0
    draft_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    draft_stops: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What was delivered before is known to the client: it counts, but is not given out again.
        if self.prompt.resume_token_ids:
            self.tokens, _ = self._until_end(self.prompt.resume_token_ids)
            self._check_finished()

    @property
    def may_be_seen_ahead(self) -> bool:
        unseen = self.sight is None and not self.seen_alone
        return unseen and self.finish_reason is None and bool(self.prompt.visual)

    def prefilled(self, pending: int, vector: Any, now: float) -> None:
        self.pending, self.vector, self.times.prefilled = pending, vector, now

    def budget(self, draft_tokens: int, catch_up: int) -> int:
        """Drafts at most; none where the twig would have to read more than `catch_up` tokens first."""
        if not self.prompt.speculate or len(self.unread) > catch_up:
            return 0
        return draft_budget(draft_tokens, self.max_tokens, len(self.tokens))

    def draw(self) -> Draw | None:
        if self.sampler is None:
            return None
        return Draw(self.sampler, position=len(self.tokens), coupled=self.prompt.speculate)

    def note_read(self, tokens: Sequence[int], read: int) -> None:
        """Before the round's tokens are added. read: as in RowOutcome."""
        if read:
            self.unread = [self.pending, *tokens[:-1]][read:]
        elif self.tokens:  # else the prompt's last, which the twig has read in the prefill
            self.unread = [*self.unread, self.pending]

    def _count_draft(self, drafted: int, accepted: int) -> None:
        self.draft_rounds += drafted > 0
        self.draft_tokens += drafted
        missing = accepted - len(self.accepted_per_position)
        self.accepted_per_position.extend([0] * missing)
        for position in range(accepted):
            self.accepted_per_position[position] += 1

    def count_stop(self, stop: str | None) -> None:
        if stop is not None:
            self.draft_stops[stop] = self.draft_stops.get(stop, 0) + 1

    def emit(self, tokens: Sequence[int], drafted: int, output: StepOutput, now: float) -> None:
        """Adds a round's tokens, accepted ones of so many drafts and then the base's own, up to their end.

        Drafts that were accepted after the end count as not accepted: nobody sees them.
        """
        new, pieces = self._until_end(tokens)
        accepted = min(len(new), len(tokens) - 1)
        self._count_draft(drafted, accepted)
        if self.times.first_token is None:
            self.times.first_token = now
        self.tokens += new
        self.pending, self.vector = new[-1], None
        self._check_finished()
        output.token_ids += new
        output.drafted += [index < accepted for index in range(len(new))]
        output.pieces += pieces
        output.text += "".join(pieces)

    def _until_end(self, tokens: Sequence[int]) -> tuple[list[int], list[str]]:
        """The tokens up to EOS or the one that completes a stop string, and the text that each set free."""
        new, pieces = until_eos(tokens, self.eos), list[str]()
        for index, token in enumerate(new):
            pieces.append(self.stops.push(self.detokenizer.push([token])))
            if self.stops.found:
                return new[: index + 1], pieces
        return new, pieces

    def _check_finished(self) -> None:
        if self.stops.found or (self.tokens and self.tokens[-1] in self.eos):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def fail(self, error: Exception) -> None:
        self.finish_reason, self.error = "error", f"{type(error).__name__}: {error}"

    def finish(self, output: StepOutput, now: float) -> None:
        """Puts the result on its last output, with the text that was still held back."""
        if self.error is None:
            held = self.stops.push(self.detokenizer.push([], last=True)) + self.stops.release()
            output.text += held
            if output.pieces:
                output.pieces[-1] += held
            if self.stops.found and self.finish_reason == "length":
                # Bytes that never became a character can be the last of a stop string.
                self.finish_reason = "stop"
        output.result = self._result(now)

    def _result(self, now: float) -> Result:
        times, prompt = self.times, self.prompt
        admitted = now if times.admitted is None else times.admitted
        encoded = admitted if times.encoded is None else times.encoded
        ready, first = times.prefilled, times.first_token
        return Result(
            request_id=self.request_id,
            token_ids=list(self.tokens),
            text=self.stops.text,
            finish_reason=self.finish_reason or "error",
            error=self.error,
            prompt_tokens=len(prompt.token_ids),
            image_tokens=len(prompt.visual),
            kept_tokens=prompt.kept_tokens,
            kept_indices=self.kept_indices,
            token_scores=self.token_scores,
            image_grids=list(prompt.grids),
            retained_tokens=prompt.retained_average,
            draft_rounds=self.draft_rounds,
            draft_tokens=self.draft_tokens,
            accepted_tokens=sum(self.accepted_per_position),
            accepted_per_position=self.accepted_per_position,
            draft_stops=self.draft_stops,
            queue_s=admitted - times.added,
            encode_s=encoded - admitted,
            prefill_s=0.0 if ready is None else ready - encoded,
            decode_s=0.0 if ready is None else now - ready,
            ttft_s=0.0 if first is None else first - times.added,
        )
