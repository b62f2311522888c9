"""Fleek: one durable HTTP API in front of any media-generation model."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, read when asked for: reading the package's metadata takes longer than a command."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  see above

        return version("fleek-media")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
