"""What goes into the engine and what comes out: requests, per-round outputs, results. No torch here.

Invariant: every request that was added leaves through exactly one `StepOutput` whose `result` is set.
Knows nothing of HTTP, queues or tensors (pixel values pass through untouched).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestError(ValueError):
    """A request that cannot be served: `param` names the field, the message its limit."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. `temperature=0` is greedy; `top_k=0` and `top_p=1` switch those filters off.

    Sampled, the text is a function of the prompt, these parameters and the seed (up to the rounding of
    logits), whatever else is in the batch and wherever it is resumed; it is another with `speculation` off,
    of the same distribution. seed None: derived from `request_id`, which is random where none is given.
    stop: the text ends before the first of these strings, token_ids with the token that completed it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class Turn:
    """What was said before the prompt. images: how many of the request's belong to it, in their order."""

    role: Literal["user", "assistant"]
    text: str
    images: int = 0


@dataclass
class Request:
    """One prompt with its images. Arrays are not copied: they must not change before the result.

    history: the turns before the prompt, for checkpoints with a chat template. The images that no turn
        has are the prompt's own.

    retained_tokens: R-bar, the average number of visual tokens over all base layers (design section 1);
        None takes the twig's default, M switches pruning off.
    retained_share: R-bar as a share of M instead, in (0, 1]; where that is impossible, the nearest legal
        R-bar. For checkpoints whose M differs from image to image.
    prompt_token_ids: bypasses the chat template; the image placeholder stands once an image, or expanded.
    pixel_values: float [n, 3, H, W], bypasses the image processor. Where the tower takes more than that
        (llava_next: `image_sizes`, qwen2_5_vl: `image_grid_thw`), the processor's tensors by their names.
    resume_token_ids: output tokens already delivered; generation continues after them. They count
        towards `max_tokens`, and `Result.token_ids` and `Result.text` start with them.
    """

    prompt: str = "Describe the image."
    images: list[Any] = field(default_factory=list)  # PIL.Image.Image or np.uint8 [H, W, 3]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    retained_tokens: int | None = None
    retained_share: float | None = None
    speculation: bool = True
    request_id: str | None = None
    prompt_token_ids: list[int] | None = None
    pixel_values: Any = None
    resume_token_ids: tuple[int, ...] = ()
    history: tuple[Turn, ...] = ()


@dataclass
class Result:
    """A finished request: the whole answer, and what it cost.

    image_tokens: M summed over the images; kept_tokens: R', what layers K..F-1 saw of them.
    retained_tokens: the average over all base layers that R' really gives, M where pruning was off.
    kept_indices: visual indices 0..M-1, ascending. token_scores: one score a visual token (same order),
        None where pruning was off. image_grids: [rows, columns] of each image's visual tokens, None where
        they are no grid. accepted_per_position[i]: rounds in which draft i was accepted.
    draft_stops: rounds by what ended their draft.
    Times are in seconds; ttft_s counts from `Engine.add` to the first new token.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0
    kept_tokens: int = 0
    kept_indices: list[int] = field(default_factory=list)
    token_scores: list[float] | None = None
    image_grids: list[tuple[int, int] | None] = field(default_factory=list)
    retained_tokens: float = 0.0
    draft_rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    draft_stops: dict[str, int] = field(default_factory=dict)
    queue_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0


@dataclass
class StepOutput:
    """What one round gave one request: only the new tokens.

    drafted[i] tells whether token_ids[i] was an accepted draft of the twig or the base's own token.
    text is the newly complete text (bytes of an unfinished character wait for the next round).
    pieces[i] is what token_ids[i] completed of it, "" where nothing; together they are the text, but where
    an answer ends without another token: then what was held back has none to belong to.
    result is set on the request's last output, and only there.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    text: str = ""
    result: Result | None = None
    pieces: list[str] = field(default_factory=list)
