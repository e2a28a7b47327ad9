"""`/` and `/static/…`: the playground's page and its files, with the headers that confine it.

Invariant: the page runs nothing inline and asks nobody but its own origin, and the browser enforces it.
Must not know: what the page does.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).resolve().parent.parent / "static"
PAGE = "index.html"

# blob: is a picture the visitor has picked. Trusted Types with no policy: no string ever becomes markup.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Revalidated by ETag each time: page and modules must be of the same release.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=STATIC, check_dir=False)


@router.get("/")
@router.head("/")
async def page(request: Request) -> Response:
    return await _file(PAGE, request)


@router.get("/static/{path:path}")
@router.head("/static/{path:path}")
async def static(path: str, request: Request) -> Response:
    return await _file(path, request)


async def _file(path: str, request: Request) -> Response:
    response = await files.get_response(path, request.scope)
    response.headers.update(HEADERS)
    return response
