"""The ASGI application for servers: `uvicorn fleek.main:app`."""

from __future__ import annotations

from fleek.api.app import create_app
from fleek.bootstrap.parts import build_redactor
from fleek.observability.logs import configure_logging
from fleek.settings import start_settings

_settings = start_settings()
configure_logging(_settings.log_level, _settings.log_format, build_redactor(_settings))
app = create_app(_settings)
