"""How long requests take, for Sentry: installed only where a share of them is to be reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleek.observability.sentry import Sentry


class Traced:
    """ASGI middleware around all others. Requests that no route fits are not reported."""

    def __init__(self, app: ASGIApp, reports: Callable[[], Sentry | None]) -> None:
        self._app = app
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            self._report(scope, time.perf_counter() - begin, status)

    def _report(self, scope: Scope, seconds: float, status: int) -> None:
        sentry, route = self._reports(), getattr(scope.get("route"), "path_format", None)
        if sentry is not None and route is not None:
            is_ok = status < HTTPStatus.INTERNAL_SERVER_ERROR
            request_id = scope.get("state", {}).get("request_id")
            name = f"{scope['method']} {route}"
            sentry.trace("http.server", name, seconds, is_ok=is_ok, request_id=request_id, status=status)
