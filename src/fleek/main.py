"""The ASGI application for servers: `uvicorn fleek.main:app`."""

from __future__ import annotations

from fleek.api.app import create_app
from fleek.observability.logs import configure_logging
from fleek.settings import load_settings

_settings = load_settings()
configure_logging(_settings.log_level, _settings.log_format)
app = create_app(_settings)
