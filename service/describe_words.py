"""A description in the words of `/v1/describe` and of a job's events: JSON, or events that carry their ids.

Must not know: where events come from, how they are sent on.
"""

from __future__ import annotations

import json

from service.answers import description_text, token_event
from service.errors import ApiError
from service.openapi import event_stream
from service.protocol import Event
from service.schemas import Description
from service.sse import encode_event

STREAM_EXAMPLE = (
    "id: 1-2\nevent: token\n"
    'data: {"text":"A large","token_ids":[311,902],"drafted":[true,false],"pieces":["A"," large"]}\n\n'
    'id: 1-9\nevent: done\ndata: {"id":"desc-…","object":"description", …}\n\n'
)


STREAM = event_stream(
    STREAM_EXAMPLE,
    "JSON: of `token` a TokenEvent, of `done` a Description, of `error` an ErrorBody.",
    *("token", "done", "error"),
)


class DescribeWords:
    def whole(self, description: Description) -> str:
        return description_text(description)

    def token(self, event: Event) -> bytes:
        return encode_event("token", token_event(event).model_dump_json(), event.id)

    def done(self, description: Description, event_id: str) -> bytes:
        return encode_event("done", description_text(description), event_id)

    def error(self, error: ApiError, event_id: str) -> bytes:
        return encode_event("error", json.dumps(error.body()), event_id)
