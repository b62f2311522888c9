"""`fleek prune`: counts, deletes, and says why it does not."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.factories import MadeJob, make_completed_job
from tests.pruning import stray_key

from fleek.cli.exits import ExitCode
from fleek.cli.main import execute
from fleek.db.session import Database
from fleek.jobs.orphans import WALK_KEY
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

NOTHING = {"expired": 0, "jobs": 0, "log_entries": 0, "orphans": 0, "bytes": 0}


@pytest.fixture
def store(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the configured store; database and home are configured too."""
    for name in [name for name in os.environ if name.startswith("FLEEK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLEEK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLEEK_DATABASE_URL", database_url)
    monkeypatch.setenv("FLEEK_STORAGE_URL", (tmp_path / "store").as_uri())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def make(database_url: str, store: Path, **overrides: Any) -> MadeJob:
    """A completed job whose picture is stored."""

    async def made() -> MadeJob:
        database = Database(database_url)
        storage = open_storage(store.as_uri(), signer=UrlSigner(b"0" * 32))
        job = await make_completed_job(database, storage, **overrides)
        await database.aclose()
        return job

    return asyncio.run(made())


def pruned(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    assert execute(["prune", "--json", *options]) == ExitCode.OK
    return dict(json.loads(capsys.readouterr().out))


def make_old(path: Path) -> None:
    moment = time.time() - 2 * 86_400
    os.utime(path, (moment, moment))


def make_undeletable(job: MadeJob, store: Path) -> None:
    """A folder in the place of an object is something that a store cannot delete."""
    path = store / job.keys[0]
    path.unlink()
    (path / "in").mkdir(parents=True)
    (path / "in" / "the-way").touch()


def test_everything_that_is_too_old_is_counted_and_then_deleted(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_JOB_RETENTION", "30d")
    now = datetime.now(UTC)
    kept = make(database_url, store)
    expired = make(database_url, store, media={"expires_at": now - timedelta(hours=1)})
    old = make(database_url, store, created_at=now - timedelta(days=31))
    stray = store / stray_key()
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x" * 1000)
    make_old(stray)
    sizes = sum((store / job.keys[0]).stat().st_size for job in (expired, old)) + 1000

    counted = pruned(capsys, "--dry-run")
    assert stray.exists()
    assert counted == {"dry_run": True, "expired": 1, "jobs": 1, "orphans": 1, "bytes": sizes}
    done = pruned(capsys)
    assert done == {**counted, "dry_run": False, "log_entries": 0}
    assert [path for path in (store / "media").rglob("*") if path.is_file()] == [store / kept.keys[0]]
    assert pruned(capsys) == {"dry_run": False, **NOTHING}


def test_without_settings_nothing_is_too_old(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make(database_url, store, created_at=datetime.now(UTC) - timedelta(days=5000))

    assert execute(["prune"]) == ExitCode.OK
    printed = capsys.readouterr()
    assert printed.out == "expired\t0\njobs\t0\nlog_entries\t0\norphans\t0\nbytes\t0\n"
    assert "FLEEK_JOB_RETENTION is not set" in printed.err
    assert (store / job.keys[0]).exists()


def test_a_store_of_another_database_is_refused_until_it_is_adopted(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(database_url, store)
    pruned(capsys)
    walk = store / WALK_KEY
    walk.write_text(json.dumps(json.loads(walk.read_text()) | {"database": "another"}))

    assert execute(["prune", "--json"]) == ExitCode.FAILED
    assert "another database" in json.loads(capsys.readouterr().err)["detail"]
    assert pruned(capsys, "--adopt")["orphans"] == 0
    assert pruned(capsys)["orphans"] == 0


def test_that_another_database_uses_the_store_is_said_beside_the_document(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(database_url, store)
    mark = store / "fleek-pruner" / "databases" / "another.json"
    mark.parent.mkdir(parents=True)
    mark.touch()

    assert pruned(capsys) == {"dry_run": False, **NOTHING}
    assert execute(["prune"]) == ExitCode.OK
    assert "orphans_of_a_shared_store" in capsys.readouterr().err


def test_a_result_that_expired_and_whose_job_is_old_too_is_counted_once(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_JOB_RETENTION", "30d")
    now = datetime.now(UTC)
    job = make(
        database_url,
        store,
        created_at=now - timedelta(days=31),
        media={"expires_at": now - timedelta(hours=1)},
    )
    size = (store / job.keys[0]).stat().st_size

    counted = pruned(capsys, "--dry-run")
    assert (counted["expired"], counted["jobs"], counted["bytes"]) == (1, 1, size)


def test_a_store_that_keeps_what_is_to_go_makes_the_command_fail(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_JOB_RETENTION", "30d")
    make_undeletable(make(database_url, store, created_at=datetime.now(UTC) - timedelta(days=31)), store)

    assert execute(["prune", "--json"]) == ExitCode.UNREACHABLE
    assert "object store" in json.loads(capsys.readouterr().err.splitlines()[-1])["detail"]


def test_jobs_that_are_put_off_are_counted(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_JOB_RETENTION", "30d")
    old = datetime.now(UTC) - timedelta(days=31)
    jobs = [make(database_url, store, created_at=old) for _ in range(3)]
    make_undeletable(jobs[1], store)

    found = pruned(capsys)
    assert (found["jobs"], found["put_off"]) == (2, 1)


def test_objects_of_jobs_that_are_too_old_to_be_known_go_when_asked(
    store: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = store / stray_key()
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    make_old(stray)
    make(database_url, store)

    assert pruned(capsys)["orphans"] == 0
    assert pruned(capsys, "--unknown")["orphans"] == 1
    assert not stray.exists()


def test_a_database_that_is_away_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEEK_DATABASE_URL", "postgresql+asyncpg://fleek@127.0.0.1:1/fleek")

    assert execute(["prune", "--json"]) == ExitCode.UNREACHABLE
    assert json.loads(capsys.readouterr().err)["code"] == "database_unavailable"
    assert not (store / WALK_KEY).exists()


def test_a_bucket_that_is_away_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.parent.exists()
    monkeypatch.setenv("FLEEK_STORAGE_URL", "s3://bucket")
    monkeypatch.setenv("FLEEK_STORAGE_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")

    assert execute(["prune", "--json"]) == ExitCode.UNREACHABLE
    assert "object store" in json.loads(capsys.readouterr().err)["detail"]


def test_a_database_without_a_schema_is_said_with_its_remedy(
    store: Path,
    create_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLEEK_DATABASE_URL", create_database("template0"))

    assert execute(["prune", "--json"]) == ExitCode.USAGE
    assert "fleek db upgrade" in json.loads(capsys.readouterr().err)["detail"]
    assert not (store / WALK_KEY).exists()
