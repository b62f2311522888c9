"""What `fleek doctor` looks at: each check says what it found, and what to do about it.

A check may raise; `examine` turns whatever it raises, or its taking too long, into a finding.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleek import failpoints
from fleek.bootstrap.parts import open_media_storage
from fleek.cli import checks_work
from fleek.cli.findings import CHECK_SECONDS, Finding, Verdict, connect, failed, ok, warning
from fleek.core.errors import FleekError
from fleek.db import migrate
from fleek.db.revisions import shipped_revisions
from fleek.providers.registry import build_catalog, load_providers
from fleek.queue.pubsub import RedisPubSub
from fleek.settings import Settings, list_files, list_misnamed, list_repeated
from fleek.storage.base import StorageError
from fleek.storage.signed_urls import UrlSigner

_OLDEST_POSTGRES = 16
_MAX_SKEW_SECONDS = 2.0
_LOW_DISK, _NO_DISK = 2 * 1024**3, 200 * 1024**2


@dataclass(frozen=True, slots=True)
class Check:
    """One question. `needs` names checks without whose success it makes no sense."""

    name: str
    ask: Callable[[Settings], Awaitable[Finding]]
    remedy: str
    needs: tuple[str, ...] = ()


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in order, each within a few seconds."""
    findings: dict[str, Finding] = {}
    for check in CHECKS:
        missing = [
            name for name in check.needs if findings[name].verdict not in {Verdict.OK, Verdict.WARNING}
        ]
        if missing:
            findings[check.name] = Finding(check.name, Verdict.SKIPPED, f"needs: {', '.join(missing)}")
        else:
            findings[check.name] = await _bounded(check, settings)
    return list(findings.values())


async def _bounded(check: Check, settings: Settings) -> Finding:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found = await check.ask(settings)
    except TimeoutError:
        found = failed(f"no answer within {CHECK_SECONDS:g} s", check.remedy)
    except FleekError as error:
        found = failed(error.message, check.remedy)
    except OSError as error:
        found = failed(_in_a_sentence(error.strerror or str(error)), check.remedy)
    except Exception as error:  # noqa: BLE001  a check never ends the others
        found = failed(f"{type(error).__name__}: {error}".removesuffix(": "), check.remedy)
    return Finding(check.name, found.verdict, found.detail, found.remedy)


def _in_a_sentence(words: str) -> str:
    """Without the capital that the system begins with; paths in it stay as they are."""
    return words[:1].lower() + words[1:]


async def _check_configuration(_: Settings) -> Finding:
    if failpoints.is_armed():
        return warning(f"{failpoints.VARIABLE} arms failpoints: processes die on purpose", "unset it")
    return judge_configuration(list_misnamed(), list_repeated(), list_files())


def judge_configuration(
    misnamed: Mapping[str, str | None], repeated: Sequence[str], files: Sequence[str]
) -> Finding:
    """Whether every variable sets something, once; `files` are those that were read."""
    if misnamed:
        shown = [name if meant is None else f"{name} (perhaps {meant})" for name, meant in misnamed.items()]
        return warning(f"no setting has this name: {', '.join(shown)}", "correct it, or unset it")
    if repeated:
        return warning(f"given more than once: {', '.join(repeated)}", "keep one; now the last one counts")
    return ok(f"every setting is understood; files read: {', '.join(files) or 'none'}")


async def _check_home(settings: Settings) -> Finding:
    home = settings.home
    if not home.is_dir():
        return failed(f"{home} does not exist", "start Fleek once (script/up), or set FLEEK_HOME")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return failed(f"{home} cannot be written to", "run as its owner, or set FLEEK_HOME to another folder")
    return ok(str(home))


async def _check_secret(settings: Settings) -> Finding:
    if settings.secret_key is not None:
        return ok("set by the configuration")
    path = settings.local.secret_key_file
    if not path.exists():
        return ok("not made yet: the first start makes it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return failed(f"{path} has mode {mode:o}: others may read it", f"chmod 600 {path}")
    return ok(f"{path}, mode {mode:o}")


async def _check_disk(settings: Settings) -> Finding:
    return judge_disk(shutil.disk_usage(settings.home).free, str(settings.home))


def judge_disk(free: int, place: str) -> Finding:
    """Whether so many free bytes are enough."""
    detail = f"{free / 1024**3:.1f} GiB free at {place}"
    if free < _NO_DISK:
        return failed(detail, "make room: PostgreSQL stops when its disk is full")
    if free < _LOW_DISK:
        return warning(detail, "make room soon")
    return ok(detail)


async def _check_database(settings: Settings) -> Finding:
    connection = await connect(settings)
    try:
        version = connection.get_server_version()
    finally:
        await connection.close()
    return judge_version(version.major, version.minor)


def judge_version(major: int, minor: int) -> Finding:
    """Whether this PostgreSQL is new enough."""
    detail = f"PostgreSQL {major}.{minor}"
    if major < _OLDEST_POSTGRES:
        return failed(f"{detail} is too old", f"upgrade to PostgreSQL {_OLDEST_POSTGRES} or newer")
    return ok(detail)


async def _check_schema(settings: Settings) -> Finding:
    current, head = await migrate.current(settings.resolved_database_url), migrate.head()
    if current == head:
        return ok(f"at {head}")
    if current is not None and current not in shipped_revisions().known:
        return ok(f"at {current}, of a later release: this one works with it")
    detail = f"at {current}, this release needs {head}" if current else "the database is empty"
    return failed(detail, "fleek db upgrade")


async def _check_clock(settings: Settings) -> Finding:
    connection = await connect(settings)
    try:
        before = datetime.now(UTC)
        theirs = await connection.fetchval("SELECT clock_timestamp()")
        after = datetime.now(UTC)
    finally:
        await connection.close()
    return judge_skew((theirs - (before + (after - before) / 2)).total_seconds())


def judge_skew(seconds: float) -> Finding:
    """Whether the database's clock and ours agree well enough."""
    detail = f"{abs(seconds):.2f} s apart from the database"
    if abs(seconds) > _MAX_SKEW_SECONDS:
        # Jobs do not mind, for the database's clock decides about them; signed URLs and logs do.
        return warning(detail, "set both clocks by NTP: signed URLs expire early or late otherwise")
    return ok(detail)


async def _check_broker(settings: Settings) -> Finding:
    pubsub = RedisPubSub(settings.resolved_redis_url)
    try:
        await pubsub.ping()
    finally:
        await pubsub.aclose()
    return ok("answers")


async def _check_storage(settings: Settings) -> Finding:
    if settings.storage_url is None and not settings.home.is_dir():
        # Opening the store would make the folder, and a doctor changes nothing.
        return failed("it lies in the home, which does not exist", "see home, or set FLEEK_STORAGE_URL")
    # The check writes, reads and deletes; it signs nothing, so any key will do.
    storage = open_media_storage(settings, UrlSigner(secrets.token_bytes()))
    try:
        await storage.check()
    except StorageError as error:
        usual = "check FLEEK_STORAGE_URL, its credentials and its permissions"
        return failed(error.message, error.remedy or usual)
    return ok(settings.resolved_storage_url)


async def _check_models(settings: Settings) -> Finding:
    loaded = load_providers(settings.providers)
    try:
        catalog = build_catalog(settings.models, loaded.providers, loaded.unavailable)
    finally:
        for provider in loaded.providers.values():
            await provider.aclose()
    return judge_models(catalog.names, catalog.unavailable)


def judge_models(names: Sequence[str], unavailable: Mapping[str, str]) -> Finding:
    """Whether there is a model to ask, and which ones cannot be used."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
    if not names:
        return failed(f"none can be used; {reasons}", "correct fleek.toml, or remove it for the demo model")
    if reasons:
        return warning(reasons, "install or configure what is missing, or remove the model from fleek.toml")
    return ok(", ".join(names))


_START = "start it (script/up brings its own)"
_WORKER = "fleek worker (script/up starts one, too)"
_LIST = "look at fleek jobs ls --status"
CHECKS = (
    Check("configuration", _check_configuration, "correct the environment or fleek.toml"),
    Check("home", _check_home, "set FLEEK_HOME"),
    Check("secret key", _check_secret, "make it readable for the user that runs Fleek, mode 600"),
    Check("disk", _check_disk, "set FLEEK_HOME", needs=("home",)),
    Check("database", _check_database, f"{_START}, or check FLEEK_DATABASE_URL"),
    Check("schema", _check_schema, "fleek db upgrade", needs=("database",)),
    Check("clock", _check_clock, "set both clocks by NTP", needs=("database",)),
    Check(
        "broker", _check_broker, f"{_START}, or check FLEEK_REDIS_URL; until then jobs start a second late"
    ),
    Check("storage", _check_storage, "check FLEEK_STORAGE_URL"),
    Check("models", _check_models, "correct fleek.toml"),
    Check("queue", checks_work.check_queue, f"{_LIST} in_queue", needs=("schema",)),
    Check("leases", checks_work.check_leases, "fleek worker", needs=("schema",)),
    Check("pauses", checks_work.check_pauses, "look at fleek models ls", needs=("schema",)),
    Check("lost orders", checks_work.check_ambiguous, f"{_LIST} error", needs=("schema",)),
    Check("workers", checks_work.check_workers, _WORKER, needs=("schema",)),
)
