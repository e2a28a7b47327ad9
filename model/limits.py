"""What one engine takes and offers: the checkpoint's limits under the operator's, and the card with them.

Invariant: what the card offers, admission accepts. No torch here; knows no request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.card import ModelCard
from model.checkpoint import CheckpointError
from model.config import EngineConfig, TwigConfig
from model.memory import KvBudget, KvShape, kv_tokens
from model.pruning import kept_budget, legal_range, legal_tiers, quality_tiers
from model.request import RequestError

if TYPE_CHECKING:
    from model.adapters.base import Adapter


@dataclass(frozen=True)
class Limits:
    """max_model_len: prompt and output of one sequence. default_retained: R-bar of one image."""

    max_model_len: int
    max_images: int
    draft_tokens: int
    draft_threshold: float
    default_retained: int


def limits_of(adapter: Adapter, twig: TwigConfig | None, config: EngineConfig) -> Limits:
    length = config.max_model_len or adapter.max_model_len
    if length > adapter.max_model_len:
        raise ValueError(f"max_model_len {length} is more than the checkpoint's {adapter.max_model_len}")
    drafts, threshold, retained = 0, 0.0, adapter.image_tokens
    if twig is not None:
        if twig.retained_tokens is not None:
            if adapter.image.dynamic is not None:
                raise ValueError(
                    f"the twig's retained_tokens must be null: a {adapter.family} image has no fixed "
                    "number of tokens"
                )
            retained = twig.retained_tokens
            _check_default(adapter, twig, retained)
        drafts = twig.draft_tokens if config.draft_tokens is None else config.draft_tokens
        threshold = twig.draft_threshold if config.draft_threshold is None else config.draft_threshold
    # Of the images themselves, leaving room for a prompt's own token and one of the answer. Pictures of
    # any size may be small: each request's own length tells.
    fitting = config.max_images if adapter.image.dynamic else (length - 2) // adapter.image_tokens
    return Limits(
        max_model_len=length,
        max_images=max(1, min(config.max_images, fitting)),
        draft_tokens=drafts,
        draft_threshold=threshold,
        default_retained=retained,
    )


def _check_default(adapter: Adapter, twig: TwigConfig, retained: int) -> None:
    """A default that is impossible would refuse every request that names none."""
    try:
        kept_budget(retained, len(adapter.layers), adapter.image_tokens, twig.fork_layer, twig.drop_layer)
    except RequestError as error:
        raise CheckpointError(f"the twig's configuration: {error}") from error


def kv_budget(
    adapter: Adapter, twig: TwigConfig | None, config: EngineConfig, limits: Limits, element_bytes: int
) -> KvBudget:
    """Raises where no request with a picture would ever fit."""
    place = (twig.fork_layer, twig.twig_layers, twig.drop_layer) if twig else None
    shape = KvShape.of(
        len(adapter.layers), place, adapter.shape.kv_heads, adapter.shape.head_dim, element_bytes
    )
    budget = KvBudget(shape, config.kv_cache_bytes, config.max_batch, limits.max_model_len)
    images = kept = 1 if adapter.image.dynamic else adapter.image_tokens
    if twig is not None and not adapter.image.dynamic:
        kept = kept_budget(
            limits.default_retained, len(adapter.layers), images, twig.fork_layer, twig.drop_layer
        )
    picture = kv_tokens(1, images, kept, max_tokens=1)
    if not budget.fits_alone(picture):
        least = budget.least_bytes(picture)
        raise ValueError(f"kv_cache_bytes {config.kv_cache_bytes} is too little: a picture takes {least}")
    return budget


def card_of(adapter: Adapter, twig: TwigConfig | None, config: EngineConfig, limits: Limits) -> ModelCard:
    count, layers = adapter.image_tokens, len(adapter.layers)
    low, high = legal_range(layers, count, twig.fork_layer, twig.drop_layer) if twig else (count, count)
    if config.quality is None:
        quality = quality_tiers(count, low, high, twig is not None)
    else:
        quality = legal_tiers(dict(config.quality), count, low, high, twig is not None)
        if refused := sorted(set(config.quality) - set(quality)):
            legal = f"{low}..{high}, or {count} for no pruning" if twig else f"{count} alone, without a twig"
            raise ValueError(f"quality {', '.join(refused)}: R-bar of an image must be {legal}")
    return ModelCard(
        model_id=adapter.model_id,
        family=adapter.family,
        image=adapter.image,
        image_tokens=count,
        grid=adapter.grid,
        layers=layers,
        max_images=limits.max_images,
        max_model_len=limits.max_model_len,
        quality=quality,
        retained_min=low,
        retained_max=high,
        default_retained=limits.default_retained,
        speculation=limits.draft_tokens > 0,
        takes_turns=adapter.takes_turns,
    )
