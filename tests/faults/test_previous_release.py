"""The code of the revision before works on the newest schema: processes can be replaced one by one.

Its source is taken from the history of the repository; without enough of that there is nothing to run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

from fleek.db.revisions import read_revisions, shipped_revisions

ROOT = Path(__file__).parents[2]
VERSIONS = Path("src/fleek/db/migrations/versions")

pytestmark = pytest.mark.slow


def git(*arguments: str) -> bytes:
    """What git says; skips the test where it cannot."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no history to take the previous release from: git {arguments[0]}: {error}")


def find_previous() -> str:
    """The last commit before the newest migration."""
    head = shipped_revisions().head
    [newest] = [path.name for path in (ROOT / VERSIONS).glob("*.py") if f'"{head}"\ndown' in path.read_text()]
    added = git("log", "--diff-filter=A", "--format=%H", "--", str(VERSIONS / newest)).decode().split()
    # A migration that is still being written is in no commit yet.
    return git("rev-parse", "--verify", f"{added[-1]}^" if added else "HEAD").decode().strip()


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which the command is that of the previous revision."""
    folder = tmp_path_factory.mktemp("previous")
    archive = git("archive", find_previous(), "src")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    environment = {"PYTHONPATH": str(folder / "src")}
    imported = subprocess.run(
        [sys.executable, "-c", "import fleek; print(fleek.__file__)"],
        capture_output=True,
        check=True,
        env=environment,
        cwd=folder,
    )
    shipped = read_revisions(path.read_text() for path in (folder / VERSIONS).glob("*.py"))

    assert imported.stdout.decode().startswith(str(folder))
    assert shipped.head != shipped_revisions().head
    assert shipped.head in shipped_revisions().known
    return environment


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The newest schema, and nothing that runs on it yet; the invariants hold at the end."""
    with open_cluster(start=False) as cluster:
        yield cluster
        check_invariants(cluster)


def test_the_previous_release_does_everything_on_the_newest_schema(
    cluster: Cluster, previous: Mapping[str, str]
) -> None:
    api, worker = cluster.apis[0], cluster.workers[0]
    api.start(**previous)
    worker.start(**previous)

    completed = cluster.wait_end(cluster.submit("a lighthouse", n=2))
    paid = cluster.wait_end(cluster.submit("a harbour", model=PAID))
    with cluster.client() as client:
        failing = client.post(
            "/v1/media/generate",
            json={
                "prompt": "a storm",
                "width": 64,
                "height": 64,
                "input": {"fail_times": 1},
                "max_attempts": 1,
            },
        ).json()
        failed = cluster.wait_end(failing["id"])
        retried = client.post(f"/v1/media/jobs/{failing['id']}/retry", json={})
        again = cluster.wait_for(failing["id"], lambda job: len(job["attempts"]) == 2 and job["finished_at"])
        picture = client.get(completed["media"][0]["content_url"], follow_redirects=False)
        deleted = client.delete(f"/v1/media/jobs/{failing['id']}")
        pages = [client.get(path).status_code for path in ("/v1/media", "/v1/media/jobs", "/v1/models")]

    assert {completed["status"], paid["status"]} == {"completed"}
    assert (failed["status"], retried.status_code, again["status"]) == ("error", 202, "error")
    assert picture.status_code == httpx2.codes.TEMPORARY_REDIRECT
    assert deleted.status_code == httpx2.codes.NO_CONTENT
    assert pages == [200, 200, 200]


def test_processes_of_both_releases_share_the_work(cluster: Cluster, previous: Mapping[str, str]) -> None:
    cluster.apis[0].start(**previous)
    cluster.workers[0].start(**previous)
    cluster.add_api().start()
    cluster.add_worker().start()

    jobs = [cluster.submit(f"picture {number}", api=number % 2) for number in range(20)]
    ended = [cluster.wait_end(job_id) for job_id in jobs]
    cluster.workers[0].kill()
    long = [cluster.submit(f"long {number}", input={"delay_seconds": 2}) for number in range(4)]
    after = [cluster.wait_end(job_id) for job_id in long]

    assert {job["status"] for job in [*ended, *after]} == {"completed"}
