"""`celery -A fleek.tasks.celery worker -l INFO --concurrency 2`, the bare command."""

from __future__ import annotations

from fleek.settings import start_settings
from fleek.tasks.wake import create_worker_app

app = create_worker_app(start_settings())
