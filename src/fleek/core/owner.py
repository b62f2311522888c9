"""Whose jobs they are. Every query filters by owner from the first release on."""

from __future__ import annotations

LOCAL_OWNER = "local"
"""The one owner until API keys exist."""
