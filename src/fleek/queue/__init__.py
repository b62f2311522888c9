"""Floor 1: wake-ups and hints. Whatever is lost here costs latency, never a job."""
