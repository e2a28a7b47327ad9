"""What MkDocs asks while it builds the guide: generated reference pages, a navigation of what is there.

The references are made from the code itself at build time (OpenAPI, the settings classes, the commands), so
they cannot drift from it. Pages that other work promises are linked and listed once they exist.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from docs.reference import api, commands, configuration  # noqa: E402 (after the path)

GENERATED = {
    "reference/api.md": api.page,
    "reference/configuration.md": configuration.page,
    "reference/commands.md": commands.page,
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    nav = list(_existing(config.nav))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    unlisted = sorted(pages - set(_targets(nav)))
    config.nav = [*nav, {"More": unlisted}] if unlisted else nav
    return config


def on_files(files: Files, config: Any) -> Files:
    for path, page in GENERATED.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What is no page (a file of the repository, a page that is not there yet) is named, not linked."""
    folder = PurePosixPath(page.file.src_uri).parent

    def unlinked(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith("mailto:") or _is_page(folder, target):
            return found[0]
        return text if "`" in text else f"{text} (`{_in_repository(folder, target)}`)"

    return LINK.sub(unlinked, markdown)


def _existing(nav: list[Any]) -> Iterator[Any]:
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            yield {title: list(_existing(target))}
        elif target.endswith("/"):
            pages = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / target).rglob("*.md"))
            if pages:
                yield {title: pages}
        elif target in GENERATED or (DOCS / target).is_file():
            yield entry


def _targets(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(target, list):
            yield from _targets(target)
        else:
            yield target


def _is_page(folder: PurePosixPath, target: str) -> bool:
    path = (DOCS / folder / target).resolve()
    if not path.is_relative_to(DOCS):
        return False
    return path.relative_to(DOCS).as_posix() in GENERATED or path.is_file()


def _in_repository(folder: PurePosixPath, target: str) -> str:
    path = (DOCS / folder / target).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
