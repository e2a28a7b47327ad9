"""What a request asks for, held against what the model and this service can do.

Invariant: what leaves here the engine can run; what it cannot run is refused by the name of its field.
Must not know: HTTP, pictures, the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import BadField, ImpossibleRetained
from service.intake import Submission
from service.protocol import JobParams, ModelCard
from service.schemas import DescribeFields

# Clients have OpenAI's signed 64 bits, the engine the same bits without a sign.
SEEDS = 2**64


@dataclass(frozen=True)
class TextLimits:
    max_prompt_chars: int
    max_tokens_default: int
    max_tokens_limit: int


def job_params(submission: Submission, card: ModelCard, limits: TextLimits) -> JobParams:
    fields, images = submission.fields, len(submission.images)
    if images > card.max_images:
        raise BadField("image", f"{images} images; '{card.model_id}' takes at most {card.max_images}.")
    if submission.history and not card.takes_turns:
        message = f"'{card.model_id}' takes one turn: one user message, after at most one system message."
        raise BadField("messages", message, code="unsupported_value")
    if len(submission.texts) > limits.max_prompt_chars:
        raise BadField("prompt", f"'prompt' has more than {limits.max_prompt_chars} characters.")
    _refuse_unsupported(fields, card)
    return JobParams(
        max_tokens=_max_tokens(fields, card, limits),
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        seed=None if fields.seed is None else fields.seed % SEEDS,
        stop=tuple(fields.stop),
        retained_tokens=retained_tokens(fields, card, images),
        retained_share=retained_share(fields, card, images),
        speculation=card.speculation if fields.speculation is None else fields.speculation,
        token_map="token_map" in fields.include,
    )


def _refuse_unsupported(fields: DescribeFields, card: ModelCard) -> None:
    if fields.speculation and not card.speculation:
        raise BadField(
            "speculation", f"'{card.model_id}' has no twig to draft with.", code="unsupported_value"
        )


def _max_tokens(fields: DescribeFields, card: ModelCard, limits: TextLimits) -> int:
    limit = min(limits.max_tokens_limit, card.max_model_len)
    if fields.max_tokens is None:
        return min(limits.max_tokens_default, limit)
    if fields.max_tokens > limit:
        raise BadField("max_tokens", f"'max_tokens' is {fields.max_tokens}; at most {limit} are generated.")
    return fields.max_tokens


def retained_tokens(fields: DescribeFields, card: ModelCard, images: int) -> int | None:
    """R-bar over all the request's images; None leaves it to the worker. A tier is meant for each image."""
    if fields.quality is not None:
        if fields.retained_tokens is not None:
            raise BadField("retained_tokens", "Give either 'quality' or 'retained_tokens', not both.")
        if fields.quality not in card.quality:
            tiers = ", ".join(card.quality) or "none"
            raise BadField("quality", f"Unknown quality '{fields.quality}'; '{card.model_id}' has: {tiers}.")
        return images * card.quality[fields.quality] if images and card.image.dynamic is None else None
    asked = fields.retained_tokens
    if asked is None or card.image.dynamic is not None:
        return asked  # the worker knows each image's own M, and refuses by it
    low, high, whole = (images * n for n in (card.retained_min, card.retained_max, card.image_tokens))
    if asked != whole and not low <= asked <= high:
        raise ImpossibleRetained(
            f"'retained_tokens' is {asked}; legal are {low} to {high}, or {whole} for no pruning.",
            param="retained_tokens",
        )
    return asked


def retained_share(fields: DescribeFields, card: ModelCard, images: int) -> float | None:
    """A tier's share of M, where M differs from image to image."""
    if fields.quality is None or card.image.dynamic is None or not images:
        return None
    return card.quality[fields.quality] / card.image_tokens
