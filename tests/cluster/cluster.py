"""A whole Fleek of real processes, with a proxy before everything that one of them talks to.

::

    with open_cluster(apis=2, workers=2) as cluster:
        job = cluster.submit("a lighthouse at dawn", model=PAID)
        cluster.workers[0].kill()
        assert cluster.wait_end(job)["status"] == "completed"

PostgreSQL and Valkey from the wheels, an S3 server, the fake Replicate, api and worker processes. Leases are
short, so that what takes half a minute in production takes three seconds here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from fleek.db.migrate import upgrade
from fleek.local.postgres import DATABASE, IMMEDIATE_STOP, ROLE, PostgresServer
from fleek.local.valkey import ValkeyServer
from tests.cluster.parts import ApiPart, VendorPart, WorkerPart
from tests.cluster.proxy import FaultProxy
from tests.s3 import ACCESS_KEY, REGION, SECRET_KEY, connect_s3, running_s3

PAID = "black-forest-labs/flux-schnell"
"""A model of the fake Replicate."""
FREE = "demo"
BUCKET, PREFIX = "results", "prefix"
PASSWORD = "not-for-any-log"
"""Of the database, as the processes know it; the server does not ask for it."""
END_SECONDS = 60
"""A bound against hangs: how long a job may take to end."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """What stands before each part."""

    postgres: FaultProxy
    valkey: FaultProxy
    store: FaultProxy
    vendor: FaultProxy

    def all(self) -> Mapping[str, FaultProxy]:
        """By name."""
        return {name: getattr(self, name) for name in ("postgres", "valkey", "store", "vendor")}


@dataclass(slots=True)
class Cluster:
    """Everything that runs, and what tests and chaos do with it."""

    folder: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    vendor: VendorPart
    store: Any
    """boto3's client of the S3 server, past its proxy."""
    proxies: Proxies
    environment: Mapping[str, str]
    apis: list[ApiPart] = field(default_factory=list)
    workers: list[WorkerPart] = field(default_factory=list)

    def add_api(self) -> ApiPart:
        """One more api, not started yet."""
        name = f"api-{len(self.apis) + 1}"
        self.apis.append(ApiPart(name, self.environment, self.folder / f"{name}.log"))
        return self.apis[-1]

    def add_worker(self, *flags: str) -> WorkerPart:
        """One more worker, not started yet."""
        name = f"worker-{len(self.workers) + 1}"
        self.workers.append(WorkerPart(name, self.environment, self.folder / f"{name}.log", *flags))
        return self.workers[-1]

    def client(self, api: int = 0, timeout: float = 20) -> httpx2.Client:
        """A client of one api; close it, or use it as a context."""
        return httpx2.Client(base_url=self.apis[api].url, timeout=timeout)

    def post(self, path: str, body: Any = None, *, key: str | None = None, api: int = 0) -> httpx2.Response:
        """One request on a connection of its own."""
        headers = {} if key is None else {"Idempotency-Key": key}
        with self.client(api) as client:
            return client.post(path, json={} if body is None else body, headers=headers)

    def submit(self, prompt: str, *, key: str | None = None, api: int = 0, **request: Any) -> str:
        """The id of a new job; a small picture unless the request says more."""
        size = {"width": 64, "height": 64} if request.get("model", FREE) == FREE else {}
        answer = self.post("/v1/media/generate", {"prompt": prompt, **size, **request}, key=key, api=api)
        assert answer.status_code == httpx2.codes.ACCEPTED, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str, api: int = 0) -> dict[str, Any]:
        """The whole job, as a client sees it."""
        with self.client(api) as client:
            return dict(client.get(f"/v1/media/jobs/{job_id}").raise_for_status().json())

    def wait_for(
        self, job_id: str, reached: Callable[[dict[str, Any]], object], seconds: float = END_SECONDS
    ) -> dict[str, Any]:
        """The job, once it is as wanted; AssertionError with the job when that takes too long."""
        deadline = time.monotonic() + seconds
        while not reached(job := self.job(job_id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def wait_end(self, job_id: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        """The job, once it has ended."""
        return self.wait_for(job_id, lambda job: job["finished_at"] is not None, seconds)

    def query(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        """Rows of the database, past the proxy; works inside and outside of event loops."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._query(sql, arguments)).result()

    async def _query(self, sql: str, arguments: Sequence[Any]) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(host=str(self.postgres.socket_dir), user=ROLE, database=DATABASE)
        try:
            await connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
            )
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    def objects(self) -> dict[str, Any]:
        """Every stored output and variant with its `LastModified`, by its key as rows name it."""
        pages = self.store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/media/")
        found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"].removeprefix(f"{PREFIX}/"): item["LastModified"] for item in found}

    def digests(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of every object of the bucket, by its key as rows name it."""

        def read(key: str) -> tuple[int, str]:
            content = self.store.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")["Body"].read()
            return len(content), hashlib.sha256(content).hexdigest()

        keys = list(self.objects())
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(keys, pool.map(read, keys), strict=True))

    def paid(self, job_id: str) -> list[dict[str, Any]]:
        """The creates that cost money, of the job whose prompt contains its own marker."""
        [request] = self.query("SELECT prompt FROM job_requests WHERE job_id = $1::uuid", job_id)
        return [
            entry
            for entry in self.vendor.ledger
            if entry["id"] is not None and entry["input"]["prompt"] == request["prompt"]
        ]

    def wait_until(self, condition: Callable[[], object], seconds: float = END_SECONDS) -> None:
        """Return when it is true; AssertionError when that takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.05)

    def heal(self) -> None:
        """Every proxy lets everything through."""
        for proxy in self.proxies.all().values():
            proxy.heal()

    def crash_postgres(self) -> None:
        """SIGQUIT, as a crash would end it."""
        self.postgres.stop(IMMEDIATE_STOP)

    def start_postgres(self) -> None:
        """Start it again. Call it on the main thread: the server ends with the thread that started it."""
        self.postgres.launch()
        self.postgres.wait_ready()

    def start_valkey(self) -> None:
        """Start it again, empty; on the main thread, as PostgreSQL."""
        self.valkey.launch()
        self.valkey.wait_ready()

    def flush_valkey(self) -> None:
        """FLUSHALL."""
        import redis  # noqa: PLC0415  only this needs a client

        with redis.Redis(unix_socket_path=str(self.valkey.socket)) as client:
            client.flushall()


QUICK = {
    "lease": "3",
    "renew_interval": "0.8",
    "rescue_interval": "0.5",
    "rescue_confirm_after": "2",
    "shutdown_grace": "5",
    "database_pool_size": "10",
}
"""Settings of clusters, unless told otherwise."""


@contextmanager
def open_cluster(
    *,
    apis: int = 1,
    workers: int = 1,
    slots: int = 16,
    seed: int = 0,
    durable: bool = False,
    config: str = "",
    arm: str = "",
    start: bool = True,
    **settings: str,
) -> Iterator[Cluster]:
    """A cluster, started unless told not to; everything of it is gone at the end.

    `settings` are Fleek's, without the prefix. `config` is a `fleek.toml`. `arm` is FLEEK_FAILPOINTS of the
    processes that are started here, not of those that are started again. `durable`: PostgreSQL syncs.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fleek-cluster-", dir="/tmp"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "fleek.toml").write_text(config)
        cluster = _assemble(stack, folder, seed, {"slots": str(slots), **settings}, durable=durable)
        for _ in range(apis):
            stack.callback(cluster.add_api().close)
        for _ in range(workers):
            stack.callback(cluster.add_worker().close)
        # Whatever is added later ends too.
        stack.callback(lambda: [part.close() for part in (*cluster.apis, *cluster.workers)])
        if start:
            armed = {"FLEEK_FAILPOINTS": arm} if arm else {}
            for part in (*cluster.apis, *cluster.workers):
                part.launch(**armed)
            for part in (*cluster.apis, *cluster.workers):
                part.wait_ready()
        yield cluster


def _assemble(
    stack: ExitStack, folder: Path, seed: int, settings: Mapping[str, str], *, durable: bool
) -> Cluster:
    postgres, valkey = _start_servers(stack, folder, durable=durable)
    endpoint = stack.enter_context(running_s3())
    store = connect_s3(endpoint)
    store.create_bucket(Bucket=BUCKET)
    vendor = VendorPart(folder / "ledger.jsonl", folder / "vendor.log", seed)
    stack.callback(vendor.close)
    vendor.launch()
    socket = next(postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
    targets = (socket, valkey.socket, _address(endpoint), _address(vendor.origin))
    proxies = Proxies(*(stack.enter_context(FaultProxy(target)) for target in targets))
    environment = _environment(folder, proxies, vendor, settings)
    return Cluster(folder, postgres, valkey, vendor, store, proxies, environment)


def _start_servers(stack: ExitStack, folder: Path, *, durable: bool) -> tuple[PostgresServer, ValkeyServer]:
    careless = {} if durable else {"fsync": "off", "full_page_writes": "off"}
    postgres = PostgresServer(
        data=folder / "postgres",
        socket_dir=folder / "run" / "postgres",
        log=folder / "logs" / "postgres.log",
        options={"shared_buffers": "64MB", **careless},
    )
    stack.callback(postgres.stop, IMMEDIATE_STOP)
    postgres.start()
    valkey = ValkeyServer(
        socket=folder / "run" / "valkey" / "valkey.sock",
        log=folder / "logs" / "valkey.log",
        copies=folder / "programs",
    )
    stack.callback(valkey.stop)
    valkey.start()
    thread = threading.Thread(target=upgrade, args=[postgres.url()])
    thread.start()
    thread.join()
    return postgres, valkey


def _environment(
    folder: Path, proxies: Proxies, vendor: VendorPart, settings: Mapping[str, str]
) -> dict[str, str]:
    """Of every process of Fleek; nothing of a developer's own settings."""
    given = {
        "home": str(folder / "home"),
        "secret_key": secrets.token_hex(16),
        "database_url": f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{proxies.postgres.port}/{DATABASE}",
        "redis_url": f"redis://127.0.0.1:{proxies.valkey.port}/0",
        "storage_url": f"s3://{BUCKET}/{PREFIX}",
        "storage_endpoint": f"http://127.0.0.1:{proxies.store.port}",
        "storage_region": REGION,
        "log_format": "json",
        "providers__replicate__base_url": f"http://127.0.0.1:{proxies.vendor.port}/v1",
        "providers__replicate__allow_any": "true",
        "providers__replicate__allow_hosts": "127.0.0.1",
        **QUICK,
        **settings,
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
    shared = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "REPLICATE_API_TOKEN": vendor.token,
    }
    return plain | shared | {f"FLEEK_{name.upper()}": value for name, value in given.items()}


def _address(url: str) -> tuple[str, int]:
    parsed = httpx2.URL(url)
    assert parsed.port is not None
    return parsed.host, parsed.port
