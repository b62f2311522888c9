"""How a start that is refused is told: in one line, which says what to do, instead of where it happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleek.core.errors import ConfigurationError

_log = structlog.get_logger(__name__)


@contextmanager
def noted_refusal(app: FastAPI) -> Iterator[None]:
    """Keep the ConfigurationError that ends the block in `app.state.refusal`, for whoever runs the server.

    Anything else that ends it is logged, and so reported: the server only prints what it is told.
    """
    try:
        yield
    except ConfigurationError as error:
        app.state.refusal = error
        raise
    except Exception:
        _log.exception("api_start_failed")
        raise


class BriefRefusal:
    """ASGI middleware: the server logs what it is told of a failed start, and that need be no traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, but for the text of a refusal."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_briefly(message: Message) -> None:
            refusal = scope["app"].state.refusal
            if message["type"] == "lifespan.startup.failed" and refusal is not None:
                message = {**message, "message": refusal.message}
            await send(message)

        await self._app(scope, receive, send_briefly)
