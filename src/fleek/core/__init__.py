"""Floor 0: pure rules. Standard library only, synchronous, no I/O; whatever depends on time takes `now`."""
