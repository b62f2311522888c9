"""Floor 5: worker processes. Celery's threads only ring the bell of the one event loop."""
