"""Floor 1: what a process tells about itself: logs, metrics, reports of errors."""
