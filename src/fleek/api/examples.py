"""Examples of the documentation. A test checks each against the schema that it stands beside."""

from __future__ import annotations

from typing import Any

from fleek.jobs.schemas import JOB_EXAMPLES, STATUS_EXAMPLE
from fleek.logs.schemas import ENTRY_EXAMPLES
from fleek.media.schemas import MEDIA_EXAMPLE

_CURSOR = "AQAGKPX2dUAAAZIAAAAAcACAAAAAAAAAAax4bHqm5uVvYlV3M0V3mG0"

GENERATE_REQUESTS: dict[str, Any] = {
    "shortest": {"prompt": "a lighthouse at dawn"},
    "more": {
        "prompt": "a lighthouse at dawn",
        "model": "demo",
        "n": 2,
        "width": 768,
        "height": 512,
        "seed": 7,
        "output_format": "webp",
        "input": {"delay_seconds": 0.5},
        "metadata": {"order": "1234"},
    },
}
RETRY_REQUESTS: dict[str, Any] = {"plain": {}, "allow_another_order": {"max_paid_submissions": 2}}

CANCELED_JOB = JOB_EXAMPLES["accepted"] | {
    "status": "canceled",
    "reason": "canceled",
    "finished_at": "2026-11-20T12:00:03Z",
}
RETRIED_JOB = JOB_EXAMPLES["failed"] | {
    "status": "in_queue",
    "reason": "retried_by_client",
    "progress": None,
    "error": None,
    "finished_at": None,
}
JOB_PAGES: dict[str, Any] = {
    "more_follows": {"items": [JOB_EXAMPLES["completed"]], "next_cursor": _CURSOR},
    "last": {"items": [JOB_EXAMPLES["failed"]], "next_cursor": None},
    "empty": {"items": [], "next_cursor": None},
}

STATUSES: dict[str, Any] = {
    "accepted": STATUS_EXAMPLE
    | {"status": "in_queue", "reason": "accepted", "progress": None, "updated_at": "2026-11-20T12:00:00Z"},
    "running": STATUS_EXAMPLE,
    "completed": STATUS_EXAMPLE
    | {
        "status": "completed",
        "reason": "completed",
        "progress": 1.0,
        "updated_at": "2026-11-20T12:00:01Z",
    },
    "failed": STATUS_EXAMPLE
    | {
        "status": "error",
        "reason": "failed",
        "error": JOB_EXAMPLES["failed"]["error"],
        "updated_at": "2026-11-20T12:00:01Z",
    },
    "whole": JOB_EXAMPLES["completed"],
}

OBJECT_KEY = f"media/{MEDIA_EXAMPLE['job_id']}/{MEDIA_EXAMPLE['id']}/1.png"
SIGNED_URL: dict[str, Any] = {
    "url": f"http://127.0.0.1:8000/v1/objects/{OBJECT_KEY}?expires=1795262400&signature=6bWJ",
    "expires_at": "2026-11-21T12:00:00Z",
}
MEDIA_PAGES: dict[str, Any] = {
    "more_follows": {"items": [MEDIA_EXAMPLE], "next_cursor": _CURSOR},
    "with_signed_urls": {
        "items": [MEDIA_EXAMPLE | {"signed_url": SIGNED_URL["url"]}],
        "next_cursor": None,
    },
    "empty": {"items": [], "next_cursor": None},
}
WAITING_MEDIA = MEDIA_EXAMPLE | dict.fromkeys(
    ("content_type", "size_bytes", "width", "height", "sha256", "thumbhash", "stored_at")
)

EVENT: dict[str, Any] = {
    "job_id": MEDIA_EXAMPLE["job_id"],
    "sequence": 2,
    "kind": "claimed",
    "status": "processing",
    "at": "2026-11-20T12:00:00.005Z",
    "data": {"attempt": 1, "worker": "laptop-4711"},
}
EVENT_STREAM = """\
retry: 2000

event: accepted
data: {"job_id":"01920000-0000-7000-8000-000000000001","sequence":1,"kind":"accepted", ...}
id: 1

event: progress
data: {"progress":0.4}

event: completed
data: {"job_id":"01920000-0000-7000-8000-000000000001","sequence":3,"kind":"completed", ...}
id: 3

"""

LOG_PAGES: dict[str, Any] = {
    "more_follows": {"items": ENTRY_EXAMPLES, "next_after": ENTRY_EXAMPLES[-1]["id"]},
    "last": {"items": ENTRY_EXAMPLES, "next_after": None},
    "nothing_new": {"items": [], "next_after": None},
}

_CAPABILITIES: dict[str, Any] = {
    "resumable": False,
    "client_chosen_id": False,
    "lookup": False,
    "cancel": False,
    "progress": True,
    "seed": True,
    "max_outputs": 8,
    "batch": False,
    "paid": False,
}
MODELS: dict[str, Any] = {
    "available": {
        "name": "demo",
        "description": "Draws a poster from the prompt and the seed, with no key and no network",
        "is_default": True,
        "available": True,
        "unavailable_reason": None,
        "provider": "demo",
        "capabilities": _CAPABILITIES,
        "price_per_output": None,
        "pause": None,
        "parameters": {"type": "object", "properties": {"delay_seconds": {"type": "number", "minimum": 0}}},
    },
    "unavailable": {
        "name": "sketch",
        "description": "",
        "is_default": False,
        "available": False,
        "unavailable_reason": "The provider sketch needs a package, which is not installed",
        "provider": None,
        "capabilities": None,
        "price_per_output": None,
        "pause": None,
        "parameters": None,
    },
}

PAUSED: dict[str, Any] = {"pause": {"until": "2026-11-20T12:15:00Z", "reason": "the invoice is not paid"}}
PAUSE_REQUESTS: dict[str, Any] = {
    "until it is resumed": {},
    "a quarter of an hour": {"seconds": 900, "reason": "the invoice is not paid"},
}

LIVE: dict[str, Any] = {"status": "ok"}
_WELL: dict[str, Any] = {"status": "ok", "latency_ms": 0.4}
_GONE: dict[str, Any] = {"status": "unavailable", "latency_ms": 2504.1}
_CHECKS: dict[str, Any] = {
    "database": _WELL,
    "schema": _WELL,
    "broker": _WELL,
    "storage": _WELL,
    "celery": {"status": "ok", "latency_ms": 3.1},
}
READY: dict[str, Any] = {
    "brief": {"status": "ok", "checks": None},
    "verbose": {"status": "ok", "checks": _CHECKS},
    "degraded": {"status": "degraded", "checks": _CHECKS | {"celery": _GONE}},
}
TOOLS: dict[str, Any] = {
    "ok": {"version": "0.1.0", **READY["verbose"]},
    "degraded": {"version": "0.1.0", **READY["degraded"]},
}
_SERVED: dict[str, Any] = {
    "queue": "default",
    "waiting": 0,
    "worker": {"name": "laptop-4711-9f2c1e", "version": "0.1.0", "queues": ["default"], "ready": True},
    "latency_ms": 3.1,
}
CELERY: dict[str, Any] = {
    "ok": {"status": "ok", "queues": [_SERVED]},
    "nobody_answers_for_gpu": {
        "status": "unavailable",
        "queues": [_SERVED, {"queue": "gpu", "waiting": 3, "worker": None, "latency_ms": None}],
    },
}
INFO: dict[str, Any] = {
    "version": "0.1.0",
    "api_version": "v1",
    "migration": {"current": "9d2e4c71ab05", "head": "9d2e4c71ab05", "status": "current"},
    "models": [
        {"name": "demo", "provider": "demo", "available": True},
        {"name": "sketch", "provider": None, "available": False},
    ],
}
