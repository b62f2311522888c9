"""The ASGI application for servers: `uvicorn fleek.main:app`."""

from __future__ import annotations

from fleek.api.app import create_app

app = create_app()
