"""The command that brings a checkpoint here before a worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import plain_errors


def fetch(
    url: Annotated[str, typer.Argument(help="What the files' names are put behind; it names the revision.")],
    folder: Annotated[Path, typer.Argument(file_okay=False)],
    sums: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="What `sha256sum` prints of them.")],
) -> None:
    """Brings a checkpoint from a web server, each file held to its SHA-256. What is there already stays."""
    with plain_errors():
        from tqdm import tqdm

        from model.fetch import fetch as run
        from model.fetch import parse_sums

        with tqdm(unit="B", unit_scale=True, disable=None) as bar:

            def tell(name: str, size: int) -> None:
                bar.set_description(name, refresh=False)
                bar.update(size)

            came = run(url, folder, parse_sums(sums.read_text()), tell)
    typer.echo(f"{came} files came" if came else "all there")
