"""`Idempotency-Key`: the same key and the same request give the same job.

Invariant: the fingerprint covers all that decides the answer and nothing else (not `stream`, not the
content type, not how urgent it is), so a retry may ask for the same answer in another form. A key is its
caller's own: another's request never meets it.
Must not know: how the key is kept (the broker takes it and the job in one write).
Source: IETF draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import anyio.to_thread

from service.broker.base import Idempotency
from service.callers import Caller
from service.errors import BadField
from service.image_url import ImageUrl
from service.intake import Picture, Submission
from service.schemas import DescribeFields

HEADER = "Idempotency-Key"
MAX_KEY_CHARS = 255
ASKED = set(DescribeFields.model_fields) - {"stream", "service_tier"}


async def read_idempotency(
    headers: Mapping[str, str], submission: Submission, caller: Caller
) -> Idempotency | None:
    key = headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise BadField(HEADER, f"'{HEADER}' must have 1 to {MAX_KEY_CHARS} characters.")
    fingerprint = await anyio.to_thread.run_sync(fingerprint_of, submission)  # megabytes to digest
    scoped = f"{caller.name}\n{key}"  # a header holds no line break
    return Idempotency(hashlib.sha256(scoped.encode()).hexdigest(), fingerprint)


def image_digest(image: Picture) -> str:
    """Of a picture to be fetched its URL: a retry must not depend on what is there by then."""
    return image.url if isinstance(image, ImageUrl) else hashlib.sha256(image).hexdigest()


def fingerprint_of(submission: Submission) -> str:
    asked: dict[str, Any] = {
        "kind": submission.kind,
        "model": submission.model,
        # Without defaults: a field that the next version adds must not change the digest.
        "fields": submission.fields.model_dump(mode="json", include=ASKED, exclude_defaults=True),
        "images": [image_digest(image) for image in submission.images],
    }
    if submission.history:
        asked["history"] = [turn.model_dump(mode="json") for turn in submission.history]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
