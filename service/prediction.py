"""How much work a request is, before anything of it is decoded: in predicted tokens.

Invariant: pure, and never less than one; the same measure counts in admission, between owners, and in the
workers' throughput, so that dividing one by another gives a time.
Must not know: the tokenizer (the gateway has none), the queue.
"""

from __future__ import annotations

from service.protocol import JobParams, ModelCard

# English has about four bytes a token and Chinese three: rather too many than too few.
BYTES_PER_TOKEN = 3
# A chat template's own.
TEMPLATE_TOKENS = 16


def predicted_tokens(prompt: str, images: int, params: JobParams, card: ModelCard) -> int:
    """Prompt text + visual tokens as the average layer sees them (R-bar) + all it may generate."""
    text = TEMPLATE_TOKENS + -(-len(prompt.encode()) // BYTES_PER_TOKEN)
    retained = images * card.default_retained if params.retained_tokens is None else params.retained_tokens
    return text + retained + params.max_tokens
