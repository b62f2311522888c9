"""What deletes by age: a worker does it now and then, a command by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fleek.bootstrap.parts import name_process, open_database, open_media_storage, open_schema
from fleek.bootstrap.secret_key import load_secret
from fleek.db.session import Database
from fleek.jobs.orphans import OrphanFinder, OrphanRules
from fleek.jobs.pruner import Pruner
from fleek.logs import repository as log_entries
from fleek.settings import Settings
from fleek.storage.base import ObjectStorage
from fleek.storage.signed_urls import UrlSigner


@dataclass(frozen=True, slots=True)
class PruneTools:
    """What deletes by age, for a worker and for the command that does it by hand."""

    database: Database
    orphans: OrphanFinder
    pruner: Pruner


@asynccontextmanager
async def open_prune_tools(settings: Settings, statement_timeout: float) -> AsyncIterator[PruneTools]:
    """For a process that only prunes; it counts too, which takes longer than other statements may (s)."""
    async with AsyncExitStack() as stack:
        patient = settings.model_copy(update={"database_statement_timeout": statement_timeout})
        database = open_database(stack, patient, "fleek prune")
        await open_schema(settings, database)
        storage = open_media_storage(settings, UrlSigner(load_secret(settings)))
        yield build_prune_tools(settings, database, storage, name_process())


def build_prune_tools(
    settings: Settings, database: Database, storage: ObjectStorage, process: str
) -> PruneTools:
    """The same for a process that has a database and a store already."""
    rules = OrphanRules(settings.orphan_age, settings.orphan_interval)
    orphans = OrphanFinder(database, storage, rules, walker=process)
    pruner = Pruner(
        database,
        storage,
        orphans,
        job_retention=settings.job_retention,
        prune_logs=partial(log_entries.prune, database, settings.log_retention),
    )
    return PruneTools(database, orphans, pruner)
