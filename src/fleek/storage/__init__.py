"""Floor 1: the object store."""
