"""The application: routes, the front door, and the parts that live as long as the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fleek.api import generate, health, jobs, media, models, objects
from fleek.api.docs import Application, add_docs
from fleek.api.middleware import FrontDoor, allowed_host_names
from fleek.api.problems import HANDLERS
from fleek.bootstrap import open_api
from fleek.settings import Settings, load_settings

_ROUTERS = (generate.router, jobs.router, media.router, objects.router, models.router, health.router)
"""The hot routes first: paths are matched in this order."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application; its parts are opened when the server starts it, and closed with it."""
    chosen = settings or load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_api(chosen) as context:
            app.state.context = context
            yield

    app = Application(
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(
        FrontDoor,
        allowed_hosts=allowed_host_names(chosen.allowed_hosts, chosen.host, chosen.public_url),
    )
    for router in _ROUTERS:
        # As plain routes: `include_router` would match each of them twice, which shows in the hot ones.
        app.router.routes.extend(router.routes)
    add_docs(app)
    return app
