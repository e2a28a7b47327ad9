"""`twigserve keys`: makes and removes API keys in the file that gateways read (and notice changes of)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import PriorityName, plain_errors
from service.settings import GatewaySettings

KeysFile = Annotated[
    Path | None, typer.Option("--file", help=r"The file of keys. \[env: TWIGSERVE_GATEWAY_KEYS_FILE]")
]


def add(
    name: str,
    file: KeysFile = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Default: no limit.")] = None,
    tokens_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Predicted tokens of its unfinished jobs. Default: no limit.")
    ] = None,
    priority: Annotated[
        list[PriorityName] | None, typer.Option(help="Repeatable; the first is the default. Default: both.")
    ] = None,
) -> None:
    """Makes a key, prints it once, and keeps its hash."""
    from service import keys

    with plain_errors():
        path = _path(file)
        key = keys.new_key()
        limits = {"requests_per_minute": requests_per_minute, "tokens_in_flight": tokens_in_flight}
        allowed = {"priorities": tuple(priority)} if priority else {}
        entry = keys.KeyEntry.model_validate({"name": name, "sha256": keys.digest(key), **limits, **allowed})
        keys.change_keys(path, lambda known: known.with_key(entry))
    typer.echo(key)


def remove(name: str, file: KeysFile = None) -> None:
    """Its requests are refused from the next second on; its jobs go on."""
    from service import keys

    with plain_errors():
        keys.change_keys(_path(file), lambda known: known.without(name))


def list_keys(file: KeysFile = None) -> None:
    """Names and limits."""
    from service import keys

    with plain_errors():
        for entry in keys.read_keys(_path(file)).keys:
            rate, tokens = entry.requests_per_minute or "any", entry.tokens_in_flight or "any"
            may = ", ".join(entry.priorities)
            typer.echo(f"{entry.name}\trequests a minute: {rate}\ttokens in flight: {tokens}\t{may}")


def _path(file: Path | None) -> Path:
    path = file or GatewaySettings(allow_anonymous=True).keys_file
    if path is None:
        raise ValueError("give --file, or set TWIGSERVE_GATEWAY_KEYS_FILE")
    return path
