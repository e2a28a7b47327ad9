"""The application's OpenAPI document: schemas as they must stand in it, and nothing in it that is not so.

Knows nothing of routes.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.schemas import TokenEvent
from service.schemas_chat import ChatChunk
from service.sse import MEDIA_TYPE

HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {"description": "The request's id, also in the logs.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "Server-Timing": {
        "description": "Of an answer that was not streamed: queue, encode, prefill, decode, total, in ms.",
        "schema": {"type": "string"},
    },
}
# Which of them a response has beyond the request id.
STATUS_HEADERS = {"429": ("Retry-After",), "503": ("Retry-After",)}
# What `Authentication` guards, where the service uses keys at all.
GUARDED = "/v1/"
BEARER = {"type": "http", "scheme": "bearer", "description": "Made by `twigserve keys add`."}
# The data of events, which no response refers to.
STREAMED: tuple[type[BaseModel], ...] = (TokenEvent, ChatChunk)
FASTAPIS_OWN = {"HTTPValidationError", "ValidationError"}


class Api(FastAPI):
    """With the schemas of streamed events; without FastAPI's 422 of every parameter, which is our 400."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = {"ApiKey": BEARER}
            for path, operation in (
                (path, op) for path, ops in document["paths"].items() for op in ops.values()
            ):
                if path.startswith(GUARDED):
                    operation["security"] = [{"ApiKey": []}, {}]
                if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                    del operation["responses"]["422"]
                for status, response in operation["responses"].items():
                    names = ("X-Request-ID", *STATUS_HEADERS.get(status, ()))
                    response.setdefault("headers", {}).update({name: HEADERS[name] for name in names})
            schemas = document["components"]["schemas"]
            for name in FASTAPIS_OWN:
                schemas.pop(name, None)
            for model in STREAMED:
                schemas[model.__name__] = inlined(model.model_json_schema(mode="serialization"))
        return self.openapi_schema or {}


def event_stream(example: str, about_data: str, *events: str) -> dict[str, Any]:
    """The content of a response of server-sent events. events: their names, where they have names and ids."""
    fields: dict[str, Any] = {"data": {"type": "string", "description": about_data}}
    if events:
        fields |= {"event": {"enum": list(events)}, "id": {"type": "string"}}
    item = {"type": "object", "properties": fields, "required": list(fields)}
    return {MEDIA_TYPE: {"itemSchema": item, "example": example}}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A pydantic schema whose `#/$defs/...` references, which mean nothing inside OpenAPI, are written out.

    Not for recursive models.
    """
    named = schema.get("$defs", {})

    def written_out(node: Any) -> Any:
        if isinstance(node, list):
            return [written_out(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return written_out(named[node["$ref"].removeprefix("#/$defs/")])
        # A discriminator's mapping refers too, and adds nothing to a `oneOf` of distinct constants.
        return {
            key: written_out(value) for key, value in node.items() if key not in ("$defs", "discriminator")
        }

    result: dict[str, Any] = written_out(schema)
    return result
