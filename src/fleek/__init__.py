"""Fleek: one durable HTTP API in front of any media-generation model."""

from importlib.metadata import version

__version__ = version("fleek-media")
