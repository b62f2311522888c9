"""Floor 4: the composition root.

The only reader of Settings, and the only place that knows which adapter stands behind which port.
Everything is built once a process, here, and closed in reverse.
"""
