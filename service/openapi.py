"""JSON schemas as they must stand inside an OpenAPI document.

Knows nothing of routes.
"""

from __future__ import annotations

from typing import Any


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
