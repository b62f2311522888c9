"""Objects that no row names: found, when they are old enough, and never taken for anything else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from tests.pruning import AT_ONCE, Scene, stray_key
from tests.queueing import Queue
from tests.s3 import Bucket

from fleek.core.errors import Conflict
from fleek.core.media import PNG, VARIANTS, object_key, parse_object_key, variant_key
from fleek.db.session import Database
from fleek.jobs.orphans import WALK_KEY, OrphanFinder, OrphanRules
from fleek.local.postgres import PostgresServer
from fleek.storage.base import StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"0" * 32)


@pytest.fixture
async def second_queue(postgres: PostgresServer, template_database: str) -> AsyncIterator[Queue]:
    """Another, empty database."""
    postgres.query(f"CREATE DATABASE second TEMPLATE {template_database} STRATEGY file_copy", "postgres")
    database = Database(postgres.url("second"))
    yield Queue(database)
    await database.aclose()
    postgres.query("DROP DATABASE second WITH (FORCE)", "postgres")


@pytest.fixture
async def scene(queue: Queue) -> Scene:
    """An empty queue and an empty store, which belongs to it."""
    scene = Scene(queue)
    await scene.finder().sweep(delete=True)
    return scene


async def test_live_results_and_their_variants_stay(scene: Scene) -> None:
    job = await scene.complete(n=2)
    for key in await scene.keys(job.id):
        await scene.store.hold_object(variant_key(key, VARIANTS[3]))
    before = await scene.store.keys()

    assert await scene.finder().run_once() == 0
    assert await scene.store.keys() == before
    assert len(before) == 4


async def test_what_an_earlier_attempt_of_a_finished_job_stored_goes(scene: Scene, queue: Queue) -> None:
    first = await queue.accept_and_claim()
    lost = await scene.left_by_attempt(first)
    await scene.store.hold_object(variant_key(lost, VARIANTS[0]))
    await queue.put_back(first)
    await queue.make_due()
    second = await queue.claim_one()
    assert await queue.finish(second)
    [key] = await scene.keys(second.id)
    await scene.store.hold_object(key)

    assert await scene.finder().run_once() == 2
    assert await scene.store.keys() == {key}


async def test_what_a_deleted_result_left_goes(scene: Scene, queue: Queue) -> None:
    job = await scene.complete(n=2)
    await queue.change("UPDATE media SET deleted_at = now() WHERE index = 0")

    assert await scene.finder().run_once() == 1
    assert await scene.store.keys() == {(await scene.keys(job.id))[1]}


@pytest.mark.parametrize("state", ["processing", "in_queue"])
async def test_objects_of_a_job_that_goes_on_stay(scene: Scene, queue: Queue, state: str) -> None:
    job = await queue.accept_and_claim()
    key = await scene.left_by_attempt(job)
    if state == "in_queue":
        await queue.put_back(job)

    assert (await queue.row(job.id)).status == state
    assert await scene.finder().run_once() == 0
    assert await scene.store.keys() == {key}


async def test_objects_of_a_claim_that_the_database_does_not_know_yet_stay(scene: Scene) -> None:
    job = await scene.fail()
    key = await scene.left_by_attempt(job, fence=job.fence + 1)

    assert await scene.finder().run_once() == 0
    assert await scene.store.keys() == {key}


async def test_objects_of_a_job_that_was_deleted_go(scene: Scene, queue: Queue) -> None:
    await queue.accept()
    await scene.store.hold_object(stray_key())

    assert await scene.finder().run_once() == 1
    assert await scene.store.keys() == set()


async def test_objects_of_unknown_jobs_from_before_the_first_known_one_are_only_deleted_when_asked(
    scene: Scene, queue: Queue
) -> None:
    first = await queue.accept()
    key = await scene.store.hold_object(stray_key(before := UUID(int=first.id.int)))
    assert key < f"media/{before}"

    assert await scene.finder().run_once() == 0
    assert (await scene.finder().sweep(delete=True)).number == 0
    assert (await scene.finder().sweep(delete=True, even_unknown=True)).number == 1


async def test_an_empty_database_takes_nothing_for_an_orphan(scene: Scene) -> None:
    key = await scene.store.hold_object(stray_key())

    assert await scene.finder().run_once() == 0
    assert await scene.store.keys() == {key}


@pytest.mark.parametrize(
    "name",
    [
        "media/readme.txt",
        "media/{job}/notes.txt",
        "media/{job}/{media}/1.png.bak",
        "media/{job}/{media}/0.png",
        "media/{job}/{media}/1.w512.webp.png",
        "media/{job}/{media}/01.png",
        "media/{job}/{media}/1/1.png",
        "media/{upper}/{media}/1.png",
        "media/{version4}/{media}/1.png",
        "other/{job}/{media}/1.png",
        "{job}/{media}/1.png",
    ],
)
async def test_what_others_put_into_the_store_is_not_touched(scene: Scene, queue: Queue, name: str) -> None:
    await queue.accept()
    _, job, media, _ = stray_key().split("/")
    version4 = "9b2e4c71-ab05-4d1e-8f3c-1b6f0d9a5277"
    key = name.format(job=job, media=media, upper=job.upper(), version4=version4)
    await scene.store.hold_object(key)

    assert await scene.finder().run_once() == 0
    assert await scene.store.keys() == {key}


async def test_only_objects_that_are_old_enough_by_the_stores_time_go(queue: Queue, tmp_path: Path) -> None:
    await queue.accept()
    storage = open_storage(tmp_path.as_uri(), signer=SIGNER)
    finder = OrphanFinder(queue.database, storage, OrphanRules(), walker="worker-1")
    await finder.sweep(delete=True)
    young, old = stray_key(), stray_key()
    for key, hours in ((young, 23.9), (old, 24.1)):
        await storage.put(key, b"x", content_type="image/png", filename="x.png")
        moment = time.time() - hours * 3600
        os.utime(tmp_path / key, (moment, moment))

    assert await finder.run_once() == 1
    assert {found.key async for found in storage.list("media")} == {young}


class TestWalk:
    async def test_a_large_store_is_walked_in_passes_that_go_on_where_the_last_one_ended(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        for _ in range(1200):
            await scene.store.hold_object(stray_key())
        rules = OrphanRules(age=timedelta(0), interval=timedelta(hours=6), keys_a_pass=500)
        finder, after_restart = scene.finder(rules), scene.finder(rules)

        deleted = [await finder.run_once(), await finder.run_once(), await after_restart.run_once()]

        assert deleted == [500, 500, 200]
        assert await scene.store.keys() == set()

    async def test_what_stays_is_not_looked_at_again_by_the_next_pass(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        for number in range(600):
            await scene.store.hold_object(f"media/0-not-ours-{number}")
        await scene.store.hold_object(stray_key())
        finder = scene.finder(OrphanRules(age=timedelta(0), interval=timedelta(hours=6), keys_a_pass=500))

        assert [await finder.run_once(), await finder.run_once()] == [0, 1]

    async def test_after_a_walk_the_store_is_left_alone_for_the_interval(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        rules = OrphanRules(age=timedelta(0), interval=timedelta(hours=6))
        assert await scene.finder(rules).run_once() == 0
        await scene.store.hold_object(stray_key())

        assert await scene.finder(rules, walker="worker-2").run_once() == 0
        hurried = OrphanRules(age=timedelta(0), interval=timedelta(0))
        assert await scene.finder(hurried, walker="worker-2").run_once() == 1

    async def test_while_one_process_walks_no_other_does_unless_it_died(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        for _ in range(600):
            await scene.store.hold_object(stray_key())
        rules = OrphanRules(age=timedelta(0), interval=timedelta(hours=6), keys_a_pass=500)
        assert await scene.finder(rules).run_once() == 500
        other = await scene.finder(rules, walker="worker-2").run_once()
        walk = json.loads(await scene.store.read(WALK_KEY))
        walk["touched_at"] = "2020-01-01T00:00:00+00:00"
        await scene.store.put(WALK_KEY, json.dumps(walk).encode(), content_type="x", filename="x")

        assert other == 0
        assert await scene.finder(rules, walker="worker-2").run_once() == 100

    @pytest.mark.parametrize("is_over", [True, False])
    async def test_a_walk_of_a_time_that_has_not_come_does_not_hold_up_the_next_one(
        self, scene: Scene, queue: Queue, *, is_over: bool
    ) -> None:
        await queue.accept()
        walk = json.loads(await scene.store.read(WALK_KEY))
        walk |= dict.fromkeys(("began_at", "touched_at"), "2900-01-01T00:00:00+00:00")
        walk |= {"is_over": is_over, "walker": "worker-9"}
        await scene.store.put(WALK_KEY, json.dumps(walk).encode(), content_type="x", filename="x")
        await scene.store.hold_object(stray_key())

        assert await scene.finder(OrphanRules(age=timedelta(0))).run_once() == 1

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"database": 1}', b"\xff"])
    async def test_a_walk_that_cannot_be_read_begins_anew(
        self, scene: Scene, queue: Queue, content: bytes
    ) -> None:
        await scene.complete()
        await queue.accept()
        await scene.store.hold_object(stray_key())
        await scene.store.put(WALK_KEY, content, content_type="x", filename="x")

        assert await scene.finder().run_once() == 1

    async def test_a_bucket_is_listed_behind_a_key_and_walked(self, queue: Queue, s3_bucket: Bucket) -> None:
        await queue.accept()
        storage = open_storage(s3_bucket.url, signer=SIGNER, endpoint=s3_bucket.endpoint)
        await OrphanFinder(queue.database, storage, AT_ONCE, walker="w").sweep(delete=True)
        keys = sorted(stray_key() for _ in range(6))
        for key in keys:
            await storage.put(key, b"x", content_type="image/png", filename="x.png")
        # What S3 says of a time has whole seconds.
        rules = OrphanRules(age=timedelta(seconds=-2), interval=timedelta(hours=6), keys_a_pass=1)
        behind = [found.key async for found in storage.list("media", after=keys[3])]

        assert behind == keys[4:]
        assert await OrphanFinder(queue.database, storage, rules, walker="w").run_once() == 6
        assert [found async for found in storage.list("media")] == []


class TestTroubles:
    async def test_a_store_that_refuses_is_left_in_peace_for_a_while_and_asked_again(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        await scene.store.hold_object(stray_key())
        scene.store.keeps = True
        patient, other = scene.finder(OrphanRules(age=timedelta(0))), scene.finder()
        for finder in (patient, other):
            with pytest.raises(StorageError):
                await finder.run_once()
        scene.store.keeps = False

        assert await patient.run_once() == 0
        assert await other.run_once() == 1


class TestAnotherDatabase:
    async def test_a_full_store_whose_jobs_are_unknown_is_not_taken_until_it_is_adopted(
        self, scene: Scene
    ) -> None:
        await scene.store.delete([WALK_KEY])
        await scene.complete()
        for _ in range(3):
            await scene.store.hold_object(stray_key())

        assert await scene.finder().run_once() == 0
        with pytest.raises(Conflict, match="--adopt"):
            await scene.finder().sweep(delete=True)
        assert len(await scene.store.keys()) == 4
        assert (await scene.finder().sweep(delete=True, adopt=True)).number == 3

    async def test_a_full_store_whose_jobs_are_known_is_taken(self, scene: Scene, queue: Queue) -> None:
        await scene.store.delete([WALK_KEY])
        job = await scene.complete(n=3)
        await queue.change("UPDATE media SET deleted_at = now() WHERE index = 0")
        await scene.store.hold_object(stray_key())

        assert await scene.finder().run_once() == 2
        assert await scene.store.keys() == set((await scene.keys(job.id))[1:])

    async def test_results_of_two_databases_that_share_a_store_both_stay(
        self, scene: Scene, queue: Queue, second_queue: Queue
    ) -> None:
        second = Scene(second_queue)
        second.store = scene.store
        first = await scene.complete()
        other = await second.complete()
        [deleted] = await scene.keys((await scene.complete()).id)
        await queue.change("UPDATE media SET deleted_at = now() WHERE key = :key", key=deleted)

        assert await second.finder().run_once() == 0
        assert await scene.finder().run_once() == 1
        assert await scene.store.keys() == {*await scene.keys(first.id), *await second.keys(other.id)}
        assert (await scene.finder().sweep(delete=True)).number == 0
        with pytest.raises(Conflict):
            await scene.finder().sweep(delete=True, even_unknown=True)
        assert (await scene.finder().sweep(delete=False, adopt=True)).number == 1

    async def test_a_store_that_was_adopted_is_not_shared_any_more(
        self, scene: Scene, queue: Queue, second_queue: Queue
    ) -> None:
        second = Scene(second_queue)
        second.store = scene.store
        await queue.accept()
        await second.finder().run_once()
        await scene.store.hold_object(stray_key())

        assert await scene.finder().run_once() == 0
        assert (await scene.finder().sweep(delete=True, adopt=True)).number == 1
        await scene.store.hold_object(stray_key())
        assert await scene.finder().run_once() == 1

    async def test_a_store_of_another_database_is_left_alone_until_it_is_adopted(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.accept()
        await scene.finder().run_once()
        walk = json.loads(await scene.store.read(WALK_KEY))
        walk["database"] = "7710539918309320711/5"
        await scene.store.put(WALK_KEY, json.dumps(walk).encode(), content_type="x", filename="x")
        await scene.store.hold_object(stray_key())
        finder = scene.finder()

        assert await finder.run_once() == 0
        with pytest.raises(Conflict):
            await finder.sweep(delete=True)
        assert (await finder.sweep(delete=False, adopt=True)).number == 1
        with pytest.raises(Conflict):
            await finder.sweep(delete=False)
        assert (await finder.sweep(delete=True, adopt=True)).number == 1
        await scene.store.hold_object(stray_key())
        assert await scene.finder().run_once() == 1

    async def test_the_database_of_the_first_walk_owns_the_store(self, scene: Scene, queue: Queue) -> None:
        await scene.finder(AT_ONCE).run_once()
        [row] = await queue.query("SELECT system_identifier::text AS name FROM pg_control_system()")

        assert json.loads(await scene.store.read(WALK_KEY))["database"].startswith(f"{row.name}/")


def test_the_key_of_a_result_reads_back() -> None:
    job, media = UUID(int=0x7 << 76 | 0b10 << 62), UUID(int=0x7 << 76 | 0b10 << 62 | 1)
    key = object_key(job, media, 12, PNG)
    name, variant = parse_object_key(key), parse_object_key(variant_key(key, VARIANTS[0]))

    assert name is not None
    assert variant is not None
    assert (name.job_id, name.media_id, name.fence, name.is_variant) == (job, media, 12, False)
    assert (variant.stem, variant.is_variant) == (name.stem, True)
