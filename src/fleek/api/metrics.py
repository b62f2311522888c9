"""The page that Prometheus reads. It is for operators and no part of the API: a proxy should not show it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from fleek.bootstrap.api import ApiContext
from fleek.observability.metrics import CONTENT_TYPE

PATH = "/metrics"


def add_metrics(app: FastAPI) -> None:
    """`GET /metrics`."""
    app.add_api_route(PATH, _show_metrics, include_in_schema=False)


async def _show_metrics(request: Request) -> Response:
    """What this process counted and how the queue is; without the database what the process counted."""
    context: ApiContext = request.app.state.context
    await context.queue_watch.refresh()
    return Response(context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
