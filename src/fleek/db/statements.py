"""Textual statements for hot reads.

SQLAlchemy matches the result columns of a bare `text` statement by name, anew on every execution,
which costs more than the driver's own work on a small row. Columns that are declared in their order
are matched once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import TextualSelect, column, text


def select_list(expressions: Mapping[str, str]) -> str:
    """The part between SELECT and FROM, of SQL expressions by the names of their columns."""
    return ", ".join(f"{expression} AS {name}" for name, expression in expressions.items())


def declare_columns(sql: str, names: Iterable[str], types: Mapping[str, Any] | None = None) -> TextualSelect:
    """The statement `sql`, whose result has the columns `names` in this order.

    `types` has SQLAlchemy's type for values that the driver does not decode by itself, such as JSONB.
    """
    types = types or {}
    return text(sql).columns(*(column(name, types.get(name)) for name in names))
