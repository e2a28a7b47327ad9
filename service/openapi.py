"""The application's OpenAPI document: schemas as they must stand in it, and nothing in it that is not so.

Knows nothing of routes.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

FASTAPIS_OWN = {"HTTPValidationError", "ValidationError"}


class Api(FastAPI):
    """Without the 422 that FastAPI adds to every parameter: what it means by it is a 400 of ours."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operation in (op for methods in document["paths"].values() for op in methods.values()):
                if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                    del operation["responses"]["422"]
            for name in FASTAPIS_OWN:
                document["components"]["schemas"].pop(name, None)
        return self.openapi_schema or {}


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
