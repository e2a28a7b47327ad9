"""`twigserve describe`: pictures in, answers out, here or at a service.

Invariant: one picture's fault is told and the others go on; the exit code says what happened, see `Exit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import (
    Device,
    DropLayer,
    Dtype,
    ForkLayer,
    Quality,
    Threads,
    Twig,
    Vlm,
    given,
    plain_errors,
)
from service.cli.pictures import NamedPicture, find
from service.cli.sources import Asked, LocalSource, PictureRefused, RemoteSource, Source
from service.schemas import Description
from service.settings import WorkerSettings

NAME = "{name}"


class Exit(IntEnum):
    ANSWERED = 0
    SOME_REFUSED = 1
    WRONG_USE = 2
    NO_SERVICE = 3
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 all answered; 1 some pictures could not be read or described, the others were; 2 wrong "
    "options, settings or checkpoint; 3 the service cannot be reached, is busy or failed; 130 interrupted."
)


def describe(
    image: Annotated[list[str], typer.Argument(help="Pictures, patterns, or - for standard input.")],
    prompt: str = "Describe the image.",
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    quality: Annotated[Quality | None, typer.Option(help="A tier of the model card.")] = None,
    retained_tokens: Annotated[
        int | None, typer.Option(help="Visual tokens kept on average over all layers.")
    ] = None,
    speculation: bool = True,
    stream: Annotated[bool, typer.Option("--stream", help="Show tokens as they come.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture, a line each.")] = False,
    keep_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the picture here with pruned patches dimmed; {name} stands for the picture's name.",
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this service instead of loading a model here.")
    ] = None,
    api_key: Annotated[
        Path | None, typer.Option("--api-key-file", help="The key for --server, alone in a file.")
    ] = None,
    vlm: Vlm = None,
    twig: Twig = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    fork_layer: ForkLayer = None,
    drop_layer: DropLayer = None,
) -> None:
    """Describes pictures, with a model here or at a service."""
    engine = given(
        vlm=vlm,
        twig=twig,
        device=device,
        dtype=dtype,
        threads=threads,
        fork_layer=fork_layer,
        drop_layer=drop_layer,
    )
    asked = Asked(
        prompt=prompt,
        max_tokens=max_tokens,
        quality=quality.value if quality else None,
        retained_tokens=retained_tokens,
        speculation=speculation,
        token_map=keep_map is not None,
    )
    with plain_errors():
        if quality is not None and retained_tokens is not None:
            raise ValueError("give --quality or --retained-tokens, not both")
        if server is not None and engine:
            raise ValueError(f"--server has its own model: {', '.join(engine)} cannot be chosen here")
        if server is None and api_key is not None:
            raise ValueError("--api-key-file is for --server")
        pictures = find(image)
        if keep_map is not None and len(pictures) > 1 and NAME not in str(keep_map):
            raise ValueError(f"--keep-map needs {NAME} in its FILE where there are several pictures")
        key = None if api_key is None else api_key.read_text().strip()
        source: Source = RemoteSource(server, key) if server else LocalSource(WorkerSettings(**engine))
        run = Run(source, asked, pictures, keep_map, stream=stream, as_json=as_json)
        code = run.all()
    raise typer.Exit(code)


class Run:
    """All pictures of one command."""

    def __init__(
        self,
        source: Source,
        asked: Asked,
        pictures: Sequence[NamedPicture],
        keep_map: Path | None,
        *,
        stream: bool,
        as_json: bool,
    ) -> None:
        from service.cli.paper import Paper

        self._source, self._asked, self._pictures, self._keep_map = source, asked, pictures, keep_map
        self._paper = Paper(several=len(pictures) > 1, live=stream, as_json=as_json)

    def all(self) -> Exit:
        from service.client import Refused, TwigserveError

        try:
            return self._each()
        except Refused as refused:
            raise ValueError(str(refused)) from refused
        except TwigserveError as error:
            self._paper.say(f"twigserve: {error}")
            return Exit.NO_SERVICE
        except KeyboardInterrupt:
            return Exit.INTERRUPTED
        finally:
            self._source.close()

    def _each(self) -> Exit:
        refused = 0
        with self._paper.progress(len(self._pictures)) as bar:
            for picture in self._pictures:
                try:
                    self._one(picture)
                except (PictureRefused, OSError) as fault:
                    self._paper.failed(picture.name, str(fault))
                    refused += 1
                bar.advance(bar.task_ids[0])
        self._paper.legend()
        return Exit.SOME_REFUSED if refused else Exit.ANSWERED

    def _one(self, picture: NamedPicture) -> None:
        data = picture.read()
        for index, told in enumerate(self._source.ask(data, self._asked)):
            if index == 0:
                self._paper.begin(picture.name)
            if isinstance(told, Description):
                self._paper.done(picture.name, told)
                self._draw(picture, data, told)
            else:
                self._paper.token(told)

    def _draw(self, picture: NamedPicture, data: bytes, answer: Description) -> None:
        if self._keep_map is None:
            return
        if answer.token_map is None:
            self._paper.say(f"{picture.name}: no keep-map, its patches do not form one grid")
            return
        from PIL import Image, ImageOps

        from model.card import ImageSpec
        from model.keepmap import keep_map

        spec = ImageSpec(**self._source.image_spec(answer.model))
        upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
        drawn = keep_map(upright, spec, answer.token_map.grid, answer.token_map.kept)
        path = Path(str(self._keep_map).replace(NAME, picture.stem))
        drawn.save(path)
        self._paper.say(f"{path}: {len(answer.token_map.kept)} patches kept")
