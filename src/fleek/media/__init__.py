"""Floor 2: stored results."""
