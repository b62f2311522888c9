"""A database's URL as SQLAlchemy and asyncpg take it: each understands other parameters."""

from __future__ import annotations

from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url

_SQLALCHEMYS = frozenset({"host", "port"})


def split(url: str) -> tuple[URL, dict[str, str]]:
    """The URL for an engine, and what its `connect_args` get beside.

    libpq's parameters, such as `sslmode`, are understood by asyncpg in a URL of its own only.
    """
    parsed = make_url(url)
    others = {name: value for name, value in parsed.query.items() if name not in _SQLALCHEMYS}
    if not others:
        return parsed, {}
    return parsed.difference_update_query(others), {"dsn": f"postgresql://?{urlencode(others, doseq=True)}"}
