"""A Fleek that works is backed up, lost and brought back: every job and every picture is there again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.acceptance.conftest import ROOT, StartUp, Up, clean_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fixtures look processes up in /proc")

QUICK = {
    "FLEEK_LEASE": "3",
    "FLEEK_RENEW_INTERVAL": "0.8",
    "FLEEK_RESCUE_INTERVAL": "0.5",
    "FLEEK_RESCUE_CONFIRM_AFTER": "2",
}
"""Jobs that ran when they were backed up are taken over in seconds."""


def fleek(*arguments: str | Path) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "fleek.cli.main", *map(str, arguments), "--json"],
        capture_output=True,
        check=False,
        cwd="/",
        env=clean_environment({"PYTHONPATH": str(ROOT / "src")}),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


def submit(up: Up, number: int) -> str:
    request = {"prompt": f"lighthouse {number}", "width": 64, "height": 64, "n": 2}
    answer = httpx2.post(f"{up.url}/v1/media/generate", json=request, timeout=30)
    return str(answer.raise_for_status().json()["id"])


def job(up: Up, job_id: str) -> dict[str, Any]:
    return dict(httpx2.get(f"{up.url}/v1/media/jobs/{job_id}", timeout=30).raise_for_status().json())


def wait_end(up: Up, job_id: str) -> dict[str, Any]:
    """The job, once it has completed."""
    status = httpx2.get(f"{up.url}/v1/media/status/{job_id}?wait=55", timeout=60).raise_for_status().json()
    assert status["status"] == "completed"
    return job(up, job_id)


def is_whole(up: Up, media: dict[str, Any]) -> bool:
    """Whether a picture's bytes are those of its row."""
    content = httpx2.get(media["content_url"], follow_redirects=True, timeout=30).raise_for_status().content
    return hashlib.sha256(content).hexdigest() == media["sha256"] and up.process.poll() is None


@pytest.mark.slow
def test_everything_of_the_moment_of_the_backup_is_there_again(start_up: StartUp, home: Path) -> None:
    up = start_up(home, workers=1, environment=QUICK)
    before = [wait_end(up, submit(up, number)) for number in range(4)]
    is_over, during = threading.Event(), list[str]()

    def submit_all_the_time() -> None:
        while not is_over.is_set():
            during.append(submit(up, len(during)))

    client = threading.Thread(target=submit_all_the_time)
    client.start()
    archive = home.parent / "backup.tar"
    saved = fleek("backup", archive, "--home", home)
    is_over.set()
    client.join()
    up.end()
    shutil.rmtree(home)

    restored = fleek("restore", archive, "--home", home)
    again = start_up(home, workers=1, environment=QUICK)
    after = [job(again, one["id"]) for one in before]
    known = [one for one in during if exists(again, one)]
    ended = [wait_end(again, one) for one in known]

    assert saved["results"] >= 8
    assert restored["missing"] == 0
    assert restored["jobs"] == len(before) + len(known)
    assert [without_urls(one) for one in after] == [without_urls(one) for one in before]
    assert all(is_whole(again, media) for one in [*after, *ended] for media in one["media"])
    assert sum(len(one["media"]) for one in ended) == 2 * len(known)


def exists(up: Up, job_id: str) -> bool:
    return httpx2.get(f"{up.url}/v1/media/status/{job_id}", timeout=30).status_code == httpx2.codes.OK


def without_urls(value: Any) -> Any:
    """An answer without its links: another start has another port."""
    if isinstance(value, dict):
        return {
            name: without_urls(part) for name, part in value.items() if name not in {"links", "content_url"}
        }
    if isinstance(value, list):
        return [without_urls(part) for part in value]
    return value


@pytest.mark.slow
def test_a_start_finishes_what_a_restore_had_begun_to_put_in_place(start_up: StartUp, home: Path) -> None:
    up = start_up(home)
    made = submit(up, 1)
    up.end()
    (home / "postgres").rename(home / "restoring-postgres")
    (home / "restoring.json").write_text(json.dumps({"aside": str(home / "replaced")}))

    again = start_up(home)

    assert job(again, made)["prompt"] == "lighthouse 1"
    assert not (home / "restoring.json").exists()
