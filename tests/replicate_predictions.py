"""The predictions of the fake Replicate: what was ordered, and where the clock has taken it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from fleek.testing import fake_picture

_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")
_SHORTEST_DEADLINE = timedelta(seconds=5)

FAKE = "fake"
"""The input that carries a script: a client can say what is to go wrong with its own order."""

Cut = Literal["before", "after"]
File = Literal[
    "png",
    "html",
    "empty",
    "huge",
    "endless",
    "slow",
    "missing",
    "error",
    "truncated",
    "gzip",
    "redirect",
    "loop",
]


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to one request, and to the prediction that a create makes. All JSON."""

    delay: float = 0.0
    """Seconds before anything is done."""
    cut: Cut | None = None
    """Close the connection: before anything is done, or after it, in place of the answer."""
    status: int | None = None
    """Refuse with this status; with `accepted` do what was asked, and then answer it all the same."""
    accepted: bool = False
    body: Any = None
    """JSON; a text is sent as it is, as HTML."""
    headers: Mapping[str, str] = field(default_factory=dict)
    reply_delay: float = 0.0
    """Seconds between doing what was asked and answering."""

    seconds: float = 0.05
    """From the create to the end of the prediction; the first fifth is `starting`."""
    looks: int = 1
    """How often it must have been looked at before it ends."""
    end: Literal["succeeded", "failed", "canceled", "aborted", "never", "lost"] = "succeeded"
    error: str = "CUDA out of memory"
    logs: str | None = None
    """In place of progress bars."""
    output: Any = "list"
    """`url`, `list`, `object`, `data` (URIs) or `null`; anything else is answered as it is."""
    file: File = "png"
    size: int = 0
    """Bytes of a huge file."""
    host: Literal["own", "api", "foreign"] = "own"
    """Where the files are: beside the API, in it (then they ask for the key), or at another host."""

    @classmethod
    def read(cls, values: object) -> Self:
        """From JSON; what it does not know is an error of the test."""
        return cls(**values) if isinstance(values, dict) else cls()

    def overridden_by(self, values: Mapping[str, Any]) -> Script:
        """The same with some values replaced."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return Script(**(given | dict(values)))


@dataclass(slots=True)
class Prediction:
    """One order that was taken."""

    id: str
    model: str
    version: str
    deployment: str | None
    input: dict[str, Any]
    script: Script
    created_at: datetime
    deadline: datetime | None
    looks: int = 0
    canceled_at: datetime | None = None
    lost: bool = False
    """Not known any more."""
    expired: bool = False
    """Known, with everything in it removed."""

    @property
    def started_at(self) -> datetime:
        """When the model begins."""
        return self.created_at + timedelta(seconds=self.script.seconds / 5)

    @property
    def done_at(self) -> datetime:
        """When the model ends, if it is let."""
        if self.script.end == "never":
            return datetime.max.replace(tzinfo=UTC)
        return self.created_at + timedelta(seconds=self.script.seconds)

    def status(self, now: datetime) -> str:
        """Where it stands; a deadline stops it as Replicate's documentation says."""
        if self.canceled_at is not None:
            return "canceled" if self.canceled_at >= self.started_at else "aborted"
        if self.deadline is not None and self.deadline <= min(now, self.done_at):
            return "canceled" if self.deadline >= self.started_at else "aborted"
        if now >= self.done_at and self.looks > self.script.looks:
            return "succeeded" if self.script.end == "lost" else self.script.end
        return "processing" if now >= self.started_at else "starting"

    def progress(self, now: datetime) -> float:
        """The fraction that is done."""
        took = (now - self.started_at).total_seconds() / (self.script.seconds * 0.8 or 1)
        return max(0.0, min(took, 1.0))

    def files(self) -> list[bytes]:
        """What the model made: other pictures for any other input, the same for the same."""
        asked = {key: value for key, value in self.input.items() if key != FAKE}
        seed = zlib.crc32(json.dumps(asked, sort_keys=True).encode())
        return [fake_picture(seed + index) for index in range(int(self.input.get("num_outputs", 1)))]

    def as_json(self, now: datetime, api: str, files: str) -> dict[str, Any]:
        """The prediction as the API answers it."""
        status = self.status(now)
        ended = status not in {"starting", "processing"}
        found: dict[str, Any] = {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "input": {} if self.expired else self.input,
            "logs": "" if self.expired or status == "starting" else self._logs(now),
            "output": self._output(files) if status == "succeeded" and not self.expired else None,
            "data_removed": self.expired,
            "error": self.script.error if status == "failed" else None,
            "status": status,
            "source": "api",
            "created_at": _time(self.created_at),
            "urls": {
                "web": f"https://replicate.com/p/{self.id}",
                "get": f"{api}/predictions/{self.id}",
                "cancel": f"{api}/predictions/{self.id}/cancel",
            },
        }
        found |= {"deployment": self.deployment} if self.deployment else {}
        found |= {"deadline": _time(self.deadline)} if self.deadline else {}
        if ended:
            end = min(now, self.done_at)
            found |= {"started_at": _time(self.started_at), "completed_at": _time(end)}
            found["metrics"] = {"predict_time": self.script.seconds * 0.8, "total_time": self.script.seconds}
        return found

    def _logs(self, now: datetime) -> str:
        if self.script.logs is not None:
            return self.script.logs
        return f"Using seed: {self.input.get('seed')}\n" + "\r".join(_bars(self.progress(now)))

    def _output(self, files: str) -> Any:
        shape = self.script.output
        if not isinstance(shape, str):
            return shape
        urls = [f"{files}/{self.id}/{index}.png" for index in range(len(self.files()))]
        if shape == "data":
            urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in self.files()]
        if shape in {"list", "data"}:
            return urls
        if shape == "url":
            return urls[0]
        if shape == "object":
            return {"note": "no address", "images": urls, "more": {"count": len(urls)}}
        return None if shape == "null" else shape


def _bars(progress: float) -> Iterator[str]:
    """The lines of tqdm up to here: 20 steps, each written over the one before."""
    done = int(progress * 20)
    for step in range(done + 1):
        bar = "█" * (step // 2) + " " * (10 - step // 2)
        yield f"{step * 5:3d}%|{bar}| {step}/20 [00:0{step % 10}<00:01, 18.2it/s]"


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def deadline_after(text: str | None, now: datetime) -> datetime | None:
    """When a `Cancel-After` ends: `90s`, `1h30m45s`, or seconds without a unit. Or ValueError."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    after = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if after < _SHORTEST_DEADLINE:
        message = "Cancel-After must be a duration of at least 5 seconds"
        raise ValueError(message)
    return now + after
