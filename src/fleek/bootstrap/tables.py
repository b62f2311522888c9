"""Every table of Fleek: whoever migrates has to know all of them."""

from __future__ import annotations

from sqlalchemy import MetaData

from fleek.db.base import Base
from fleek.events import models as _events  # noqa: F401  registers its tables
from fleek.jobs import models as _jobs  # noqa: F401  registers its tables
from fleek.logs import models as _logs  # noqa: F401  registers its tables
from fleek.media import models as _media  # noqa: F401  registers its tables


def load_metadata() -> MetaData:
    """Every table, for migrations."""
    return Base.metadata
