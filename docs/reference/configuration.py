"""The configuration page, from the settings classes."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from docs.reference.table import code, table
from service import settings

INTRO = """# Configuration

Every setting is an environment variable; where a command has an option of the same meaning, the option wins.
A `TWIGSERVE_` variable that is not listed here stops the process and is named. Times are in seconds (`_S`),
sizes in bytes (`_BYTES`); a list is JSON (`["one", "two"]`).
"""


def page() -> str:
    return "\n".join([INTRO, *(_section(kind) for kind in settings_classes())])


def settings_classes() -> list[type[BaseSettings]]:
    found = [
        kind
        for _, kind in inspect.getmembers(settings, inspect.isclass)
        if issubclass(kind, BaseSettings) and kind.model_config.get("env_prefix")
    ]
    return sorted(found, key=lambda kind: str(kind.model_config["env_prefix"]))


def _section(kind: type[BaseSettings]) -> str:
    prefix = str(kind.model_config["env_prefix"])
    about = inspect.cleandoc(kind.__doc__ or "") if kind.__dict__.get("__doc__") else ""
    rows = [
        (code((prefix + name).upper()), code(_default(field)), _limits(field), field.description or "")
        for name, field in kind.model_fields.items()
        if not _nested(field)
    ]
    title = prefix.removeprefix(settings.ENV_PREFIX).rstrip("_").replace("_", " ").title()
    return f"## {title}\n\n{about}\n\n{table(('variable', 'default', 'limits', 'meaning'), rows)}"


def _nested(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings)


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    secret = getattr(value, "get_secret_value", None)
    return secret() if secret else "unset" if value in (None, ()) else value


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Of a Literal, alone or beside None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))


def _limits(field: FieldInfo) -> str:
    told = [code(choice) for choice in _choices(field.annotation)]
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            told.append(f"at least {bound.ge}")
        elif isinstance(bound, annotated_types.Gt):
            told.append(f"above {bound.gt}")
        elif isinstance(bound, annotated_types.Le):
            told.append(f"at most {bound.le}")
        elif isinstance(bound, annotated_types.Lt):
            told.append(f"below {bound.lt}")
        elif getattr(bound, "pattern", None):
            told.append(code(bound.pattern))
    return ", ".join(told)
