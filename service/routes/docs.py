"""`/docs`: the API's reference, made by Swagger UI from `/openapi.json`, with nothing from outside.

Swagger UI itself comes with the `fastapi-offline` package; FastAPI's own page would load it from a CDN.
Invariant: like the playground the page runs nothing inline and asks nobody but its own origin.
Must not know: the API.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from service.errors import NotFound
from service.routes.playground import HEADERS, STATIC

PAGE = "docs.html"
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
# As the playground's, but Swagger UI draws with data: images, and makes markup of Markdown: no Trusted Types.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

router = APIRouter(include_in_schema=False)
pages = StaticFiles(directory=STATIC, check_dir=False)
assets = StaticFiles(directory=str(files("fastapi_offline") / "static"), check_dir=False)


@router.get("/docs")
@router.head("/docs")
async def page(request: Request) -> Response:
    response = await pages.get_response(PAGE, request.scope)
    response.headers.update(HEADERS | {"Content-Security-Policy": CONTENT_SECURITY_POLICY})
    return response


@router.get("/static/swagger/{name}")
@router.head("/static/swagger/{name}")
async def asset(name: str, request: Request) -> Response:
    if name not in ASSETS:
        raise NotFound("Not Found")
    response = await assets.get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
