"""The busiest routes, without the framework's way to them, which prepares what they never use.

The routes stand in the application all the same, for their documentation and for every other method.
Invariant: what is raised here is answered as the application's own handlers answer it.
Must not know: what a route does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import HANDLED, error_response

Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """posts: endpoints of POST by their whole path."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._posts.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except HANDLED as exc:
            response = error_response(request, exc)
        await response(scope, receive, send)
