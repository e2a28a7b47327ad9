"""`twigserve describe`: pictures in, answers out, here or at a service.

Invariant: one picture's fault is told and the others go on; the exit code says what happened, see `Exit`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.groups import grouped
from service.cli.options import EngineOptions, Quality, plain_errors
from service.cli.pictures import NamedPicture, find
from service.cli.sources import Asked, LocalSource, PictureRefused, RemoteSource, Source
from service.schemas import Description
from service.settings import WorkerSettings

if TYPE_CHECKING:
    from service.cli.paper import Paper

NAME = "{name}"
QUESTION, OUTPUT, SERVICE = "The question", "The answer", "A service instead of a model here"


class Exit(IntEnum):
    ANSWERED = 0
    SOME_REFUSED = 1
    WRONG_USE = 2
    NO_SERVICE = 3
    INTERRUPTED = 130


EPILOG = """Examples:

$ twigserve describe cat.png --stream

$ twigserve describe 'photos/**/*.jpg' --quality fast --json > answers.jsonl

$ cat cat.png | twigserve describe - --prompt "What is it?" --server http://127.0.0.1:8000

$ twigserve describe a.png b.png --keep-map 'kept/{name}.png'

""" + (
    "Exit codes: 0 all answered; 1 some pictures could not be read or described, the others were; 2 wrong "
    "options, settings or checkpoint; 3 the service cannot be reached, is busy or failed; 130 interrupted."
)


@grouped
def describe(
    image: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Pictures, quoted patterns, or - for standard input."),
    ],
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What to ask.", rich_help_panel=QUESTION)
    ] = "Describe the image.",
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer.", rich_help_panel=QUESTION)
    ] = 128,
    quality: Annotated[
        Quality | None,
        typer.Option(
            help="How much of the picture is kept; exact prunes nothing. By default what suits the model.",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    retained_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The same as a number: visual tokens kept on average over all layers.",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    speculation: Annotated[
        bool,
        typer.Option(help="Let the twig draft: changes how soon, not what.", rich_help_panel=QUESTION),
    ] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show tokens as they come.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a picture, a line each.", rich_help_panel=OUTPUT),
    ] = False,
    keep_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the picture here with pruned patches dimmed; {name} stands for the picture's name.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Its address.", rich_help_panel=SERVICE)
    ] = None,
    api_key: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="Its key, alone in a file.", rich_help_panel=SERVICE
        ),
    ] = None,
    *,
    engine: EngineOptions,
) -> None:
    """Describes pictures, with a model here or at a service."""
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
        if server is not None and engine.said():
            raise ValueError(f"--server has its own model: {', '.join(engine.said())} cannot be chosen here")
        if server is None and api_key is not None:
            raise ValueError("--api-key-file is for --server")
        pictures = find(image)
        if keep_map is not None:
            check_keep_map(keep_map, pictures)
        from service.cli.paper import Paper

        paper = Paper(several=len(pictures) > 1, live=stream, as_json=as_json)
        key = None if api_key is None else read_key(api_key)
        try:
            source = RemoteSource(server, key) if server else _engine_here(engine, paper)
            code = Run(source, asked, pictures, keep_map, paper).all()
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
    raise typer.Exit(code)


def read_key(file: Path) -> str:
    """An editor's byte order mark and line ends are no part of it."""
    key = file.read_text("utf-8-sig").strip()
    if not key:
        raise ValueError(f"--api-key-file: there is no key in {file}")
    return key


def check_keep_map(file: Path, pictures: Sequence[NamedPicture]) -> None:
    """Before the first question: what cannot be written is said while nothing has been computed."""
    from PIL import Image

    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--keep-map: '{file.suffix}' names no kind of picture; try .png")
    if len(pictures) > 1 and NAME not in str(file):
        raise ValueError(f"--keep-map needs {NAME} in its FILE where there are several pictures")
    names = Counter(picture.stem for picture in pictures)
    if double := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"--keep-map would write '{min(double)}' twice: several pictures are named so")
    paths = {_drawn_at(file, picture) for picture in pictures}
    given = {Path(picture.name).resolve() for picture in pictures}
    if over := [path for path in paths if path.resolve() in given]:
        raise ValueError(f"--keep-map would write over {min(over)}, which is to be described")
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise ValueError(f"--keep-map cannot write into {folder}")


def _drawn_at(file: Path, picture: NamedPicture) -> Path:
    return Path(str(file).replace(NAME, picture.stem))


def _engine_here(engine: EngineOptions, paper: Paper) -> Source:
    with paper.waiting("loading the model"):
        return LocalSource(WorkerSettings(**engine.said()))


class Run:
    """All pictures of one command."""

    def __init__(
        self,
        source: Source,
        asked: Asked,
        pictures: Sequence[NamedPicture],
        keep_map: Path | None,
        paper: Paper,
    ) -> None:
        self._source, self._asked, self._pictures, self._keep_map = source, asked, pictures, keep_map
        self._paper = paper

    def all(self) -> Exit:
        from service.client import Conflict, Refused, TwigserveError

        try:
            return self._each()
        except TwigserveError as error:
            if isinstance(error, Refused) and not isinstance(error, Conflict):  # somebody cancelled the job
                raise ValueError(str(error)) from error
            self._paper.say(f"twigserve: {error}")
            return Exit.NO_SERVICE
        finally:
            self._source.close()

    def _each(self) -> Exit:
        refused = 0
        with self._paper.progress(len(self._pictures)):
            for picture in self._pictures:
                try:
                    self._one(picture)
                except BrokenPipeError:
                    raise
                except (PictureRefused, OSError) as fault:
                    self._paper.failed(picture.name, str(fault))
                    refused += 1
                self._paper.advance()
        self._paper.legend()
        return Exit.SOME_REFUSED if refused else Exit.ANSWERED

    def _one(self, picture: NamedPicture) -> None:
        self._paper.begin(picture.name)
        data = picture.read()
        for told in self._source.ask(data, self._asked):
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

        spec = ImageSpec.from_dict(self._source.image_spec(answer.model))
        upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
        drawn = keep_map(upright, spec, answer.token_map.grid, answer.token_map.kept)
        path = _drawn_at(self._keep_map, picture)
        drawn.save(path)
        self._paper.say(f"{path}: {len(answer.token_map.kept)} patches kept")
