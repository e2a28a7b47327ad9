"""The HTTP API page, from the application's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from docs.reference.table import code, table

INTRO = """# HTTP API

Made from `/openapi.json`, which every gateway serves; `/docs` is the same to try out. Errors have one shape
everywhere, OpenAI's, with an `X-Request-ID` beside it:

```json
{"error": {"message": "…", "type": "invalid_request_error", "code": "unknown_field", "param": "colour"}}
```
"""
Json = dict[str, Any]


def page() -> str:
    from service.app import create_app
    from service.settings import GatewaySettings

    document = create_app(GatewaySettings()).openapi()
    return "\n".join([INTRO, *_operations(document), "## Schemas\n", *_schemas(document)])


def _operations(document: Json) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{operation.get('summary', '')}. {operation.get('description', '')}\n"
            if parameters := operation.get("parameters"):
                yield table(
                    ("parameter", "in", "meaning"),
                    ((code(p["name"]), p["in"], p.get("description", "")) for p in parameters),
                )
            yield from _body(document, operation.get("requestBody", {}))
            rows = [
                (_status(status), answer.get("description", ""), ", ".join(_names(document, answer)))
                for status, answer in operation["responses"].items()
            ]
            yield table(("status", "meaning", "body"), rows)


def _body(document: Json, body: Json) -> Iterator[str]:
    contents = body.get("content", {})
    if not contents:
        return
    kinds = " or ".join(code(kind) for kind in contents)
    schema = _resolved(document, next(iter(contents.values()))["schema"])
    yield f"Body: {kinds}\n"
    yield _fields(document, schema)


def _schemas(document: Json) -> Iterator[str]:
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "properties" in schema:
            yield f"### {name}\n\n{schema.get('description', '')}\n\n{_fields(document, schema)}"


def _fields(document: Json, schema: Json) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            code(name) + (" (required)" if name in required else ""),
            _kind(document, field),
            code(json.dumps(field["default"])) if field.get("default") not in (None, []) else "",
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "default", "meaning"), rows)


def _kind(document: Json, field: Json) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})" if name in document["components"]["schemas"] else name
    if "enum" in field or "const" in field:
        return ", ".join(code(value) for value in field.get("enum", [field.get("const")]))
    if either := field.get("anyOf") or field.get("oneOf"):
        kinds = [_kind(document, one) for one in either if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if field.get("type") == "array":
        items = field.get("items") or {}
        return f"list of {_kind(document, items)}" if items else "list"
    bounds = [f"{sign} {field[key]}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([field.get("format") or field.get("type", "any"), ", ".join(bounds)]).strip()


BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "maxLength": "length ≤",
}


def _names(document: Json, answer: Json) -> list[str]:
    kinds = []
    for media, content in answer.get("content", {}).items():
        schema = content.get("schema", {})
        kinds.append(_kind(document, schema) if "$ref" in schema else code(media))
    return kinds


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Json = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return found


def _status(status: str) -> str:
    return f"{status} {HTTPStatus(int(status)).phrase}" if status.isdecimal() else status
