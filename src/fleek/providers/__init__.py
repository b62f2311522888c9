"""Floor 1: providers, found by entry point; a feature knows `base`, never a concrete adapter."""
