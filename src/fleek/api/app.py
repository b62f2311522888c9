"""The application: routes, the front door, and the parts that live as long as the process."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import FrameType

from fastapi import FastAPI

from fleek.api import generate, health, jobs, logs, media, models, objects, tools
from fleek.api.docs import Application, add_docs
from fleek.api.metrics import add_metrics
from fleek.api.middleware import FrontDoor, allowed_host_names
from fleek.api.problems import HANDLERS
from fleek.api.start import BriefRefusal, noted_refusal
from fleek.bootstrap.api import ApiContext, open_api
from fleek.bootstrap.parts import build_metrics
from fleek.observability.metrics import Metrics
from fleek.reporting import start_reporting, warn_of_misnamed
from fleek.settings import Settings, load_settings

_ROUTERS = (
    generate.router,
    jobs.router,
    logs.router,
    media.router,
    objects.router,
    models.router,
    health.router,
    tools.router,
)
"""The hot routes first: paths are matched in this order."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application; its parts are opened when the server starts it, and closed with it."""
    chosen = settings or load_settings()
    metrics = build_metrics(chosen)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            context = app.state.context = await _open(stack, app, chosen, metrics)
            with _told_of_signals(context.waiters.begin_stop):
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
        metrics=metrics.http,
        log_requests=chosen.log_requests,
    )
    app.state.refusal = None
    app.add_middleware(BriefRefusal)
    for router in _ROUTERS:
        # As plain routes: `include_router` would match each of them twice, which shows in the hot ones.
        app.router.routes.extend(router.routes)
    if chosen.metrics:
        add_metrics(app)
    add_docs(app)
    if chosen.sentry_dsn is not None and chosen.sentry_traces_sample_rate > 0:
        from fleek.api.tracing import Traced  # noqa: PLC0415  Sentry's SDK is loaded only where it is used

        app.add_middleware(Traced, reports=lambda: app.state.sentry)
    return app


async def _open(stack: AsyncExitStack, app: FastAPI, settings: Settings, metrics: Metrics) -> ApiContext:
    """Build what the process works with, once it can tell of what goes wrong."""
    with noted_refusal(app):
        app.state.sentry = sentry = start_reporting(settings, "api")
        if sentry is not None:
            stack.push_async_callback(asyncio.to_thread, sentry.close)
        warn_of_misnamed()
        return await stack.enter_async_context(open_api(settings, metrics))


@contextmanager
def _told_of_signals(on_stop: Callable[[], None]) -> Iterator[None]:
    """Call `on_stop` on the event loop when the process is told to end, and then the server's own handler.

    A server waits for requests in flight before it ends the lifespan, and cuts those that take too long:
    a request that waits for a job has to hear of the stop before that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals; a server in another one has no use for them.
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(on_stop)
        then = previous[signal.Signals(number)]
        if callable(then):
            then(number, frame)

    for number, then in previous.items():
        if callable(then):
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, then in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, then)
