"""Public shapes of jobs. Output shapes have no defaults, so generated clients see required fields."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from fleek.core.job import RETRYABLE_CODES, Reason, Status
from fleek.core.media import MAX_SEED, MAX_SIDE, MIN_SIDE, SIDE_STEP, OutputFormat
from fleek.core.urls import Urls
from fleek.media.schemas import MEDIA_EXAMPLE, MediaOut

MAX_PROMPT = 8_000
MAX_OUTPUTS = 8
MAX_DEPTH = 16
MAX_METADATA_KEYS, MAX_METADATA_BYTES = 16, 4096
DEFAULT_DEADLINE, MAX_DEADLINE = 86_400, 604_800

_Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)]


def storable(text: str) -> str:
    """PostgreSQL's text holds no NUL, and UTF-8 no lone surrogate."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        message = "must not contain NUL or lone surrogates"
        raise ValueError(message)
    return text


def _check_json(value: Any, depth: int = 1) -> None:  # noqa: ANN401  any JSON value
    """Refuse what cannot be stored, or nests deeper than anyone means."""
    if depth > MAX_DEPTH:
        message = f"must not nest deeper than {MAX_DEPTH} levels"
        raise ValueError(message)
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            storable(key)
            _check_json(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)


Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT), AfterValidator(storable)]


class GenerateRequest(BaseModel):
    """What to generate. Only `prompt` is required."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"prompt": "a lighthouse at dawn"},
                {"prompt": "a lighthouse at dawn", "n": 2, "width": 768, "height": 512, "seed": 7},
            ]
        },
    )

    prompt: Prompt = Field(description="1 to 8,000 code points")
    model: (
        Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(storable)] | None
    ) = Field(default=None, description="A name of `GET /v1/models`; absent: the default model")
    n: int = Field(default=1, ge=1, le=MAX_OUTPUTS, description="Number of outputs")
    width: _Side | None = Field(default=None, description="Pixels; with `height`, or neither")
    height: _Side | None = Field(default=None, description="Pixels; with `width`, or neither")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Output i uses seed + i; absent: one is chosen and stored",
    )
    negative_prompt: (
        Annotated[str, StringConstraints(max_length=MAX_PROMPT), AfterValidator(storable)] | None
    ) = Field(default=None, description="What to avoid, where the model knows how")
    output_format: Literal["png", "webp", "jpeg"] | None = Field(default=None, description="Absent: png")
    input: dict[str, Any] = Field(default_factory=dict, description="What the model itself takes")
    priority: int = Field(default=0, ge=-10, le=10, description="Among your own jobs; higher runs first")
    max_attempts: int = Field(default=4, ge=1, le=10, description="Counted failures before giving up")
    deadline_seconds: int = Field(
        default=DEFAULT_DEADLINE, ge=30, le=MAX_DEADLINE, description="From now on, waiting included"
    )
    metadata: dict[str, str] = Field(
        default_factory=dict, description="Yours: at most 16 keys and 4 kB; filter by `metadata.KEY`"
    )

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_json(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        _check_json(value)
        if len(value) > MAX_METADATA_KEYS or len(to_json(value)) > MAX_METADATA_BYTES:
            message = f"must have at most {MAX_METADATA_KEYS} keys and {MAX_METADATA_BYTES} bytes"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _check_sides(self) -> GenerateRequest:
        if (self.width is None) != (self.height is None):
            message = "width and height must be given together"
            raise ValueError(message)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """What every model is asked for, as it is stored; without the seed, which may be ours."""
        return {
            "width": self.width,
            "height": self.height,
            "negative_prompt": self.negative_prompt,
            "output_format": self.output_format or OutputFormat.PNG,
        }


class RetryRequest(BaseModel):
    """How to run a finished job again; the body may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{}]})

    max_paid_submissions: int | None = Field(
        default=None, ge=1, le=20, description="Allow this many orders in all, though one may be paid twice"
    )


class ErrorOut(BaseModel):
    """Why a job ended in error, or why its last attempt did not count."""

    model_config = ConfigDict(title="JobError")

    code: str
    message: str
    retryable: bool = Field(description="Whether the same request may succeed later")

    @classmethod
    def from_columns(cls, code: str | None, message: str | None) -> ErrorOut | None:
        """None where there is no error."""
        if code is None:
            return None
        return cls(code=code, message=message or "", retryable=code in {str(c) for c in RETRYABLE_CODES})


class AttemptOut(BaseModel):
    """One claim of the job by a worker."""

    model_config = ConfigDict(title="Attempt")

    number: int = Field(description="Grows over the job's life; gaps are normal after a crash")
    worker: str
    celery_task_id: str | None = Field(description="The wake-up that led to it")
    started_at: datetime
    finished_at: datetime | None
    outcome: Reason | None
    error: ErrorOut | None
    metrics: dict[str, Any] | None


class SubmissionOut(BaseModel):
    """One order placed with a provider."""

    model_config = ConfigDict(title="Submission")

    ordinal: int
    provider: str
    model_ref: str
    accepted_at: datetime | None
    resolved_at: datetime | None
    resolution: Literal["result", "rejected", "failed", "canceled", "ambiguous"] | None
    cost: Annotated[Decimal, PlainSerializer(str, return_type=str)] | None = Field(description="US dollars")


class Cost(BaseModel):
    """What the job's orders cost, as far as the provider said."""

    amount: Annotated[Decimal, PlainSerializer(str, return_type=str)]
    currency: Literal["USD"]


class Links(BaseModel):
    """Where to go from here."""

    self: str
    status: str
    events: str
    cancel: str

    @classmethod
    def of(cls, job_id: UUID, urls: Urls) -> Links:
        """The links of one job."""
        return cls(
            self=urls.job(job_id),
            status=urls.status(job_id),
            events=urls.events(job_id),
            cancel=urls.cancel(job_id),
        )


_JOB_ID = "01920000-0000-7000-8000-000000000001"
_BASE = "http://127.0.0.1:8000/v1/media"
JOB_EXAMPLES: dict[str, dict[str, Any]] = {}
"""Examples by state: `accepted`, `running`, `completed`, `failed`."""

_ACCEPTED: dict[str, Any] = {
    "id": _JOB_ID,
    "status": "in_queue",
    "reason": "accepted",
    "model": "demo",
    "prompt": "a lighthouse at dawn",
    "negative_prompt": None,
    "width": None,
    "height": None,
    "seed": 7,
    "output_format": "png",
    "input": {},
    "n": 1,
    "progress": None,
    "failures": 0,
    "max_attempts": 4,
    "priority": 0,
    "metadata": {"order": "1234"},
    "error": None,
    "media_ids": [MEDIA_EXAMPLE["id"]],
    "media": [],
    "attempts": [],
    "submissions": [],
    "paid_submissions": 0,
    "cost": None,
    "created_at": "2026-11-20T12:00:00Z",
    "available_at": "2026-11-20T12:00:00Z",
    "deadline_at": "2026-11-21T12:00:00Z",
    "started_at": None,
    "finished_at": None,
    "links": {
        "self": f"{_BASE}/jobs/{_JOB_ID}",
        "status": f"{_BASE}/status/{_JOB_ID}",
        "events": f"{_BASE}/jobs/{_JOB_ID}/events",
        "cancel": f"{_BASE}/jobs/{_JOB_ID}/cancel",
    },
}
_RUNNING_ATTEMPT: dict[str, Any] = {
    "number": 1,
    "worker": "laptop-4711",
    "celery_task_id": "3d1b9c5e-6d2f-4f0e-9d7e-2f1c4d0a9b11",
    "started_at": "2026-11-20T12:00:00.005Z",
    "finished_at": None,
    "outcome": None,
    "error": None,
    "metrics": None,
}
_RUNNING = _ACCEPTED | {
    "status": "processing",
    "reason": "claimed",
    "progress": 0.4,
    "attempts": [_RUNNING_ATTEMPT],
    "started_at": "2026-11-20T12:00:00.005Z",
}
JOB_EXAMPLES["accepted"] = _ACCEPTED
JOB_EXAMPLES["running"] = _RUNNING
JOB_EXAMPLES["completed"] = _RUNNING | {
    "status": "completed",
    "reason": "completed",
    "progress": 1.0,
    "media": [MEDIA_EXAMPLE],
    "attempts": [
        _RUNNING_ATTEMPT
        | {"finished_at": "2026-11-20T12:00:01Z", "outcome": "completed", "metrics": {"seconds": 1.0}}
    ],
    "finished_at": "2026-11-20T12:00:01Z",
}
_REFUSED = {"code": "content_refused", "message": "The provider refused the prompt", "retryable": False}
JOB_EXAMPLES["failed"] = _RUNNING | {
    "status": "error",
    "reason": "failed",
    "error": _REFUSED,
    "attempts": [
        _RUNNING_ATTEMPT | {"finished_at": "2026-11-20T12:00:01Z", "outcome": "failed", "error": _REFUSED}
    ],
    "finished_at": "2026-11-20T12:00:01Z",
}


class JobOut(BaseModel):
    """A generation request, from accept to its end."""

    model_config = ConfigDict(title="Job", json_schema_extra={"examples": list(JOB_EXAMPLES.values())})

    id: UUID
    status: Status
    reason: Reason = Field(description="Why the last change happened")
    model: str
    prompt: str
    negative_prompt: str | None
    width: int | None
    height: int | None
    seed: int = Field(description="Of the first output; ours where none was sent")
    output_format: OutputFormat
    input: dict[str, Any]
    n: int
    progress: float | None = Field(description="0 to 1; null means unknown")
    failures: int
    max_attempts: int
    priority: int
    metadata: dict[str, str]
    error: ErrorOut | None
    media_ids: list[UUID] = Field(description="Known from the first answer on")
    media: list[MediaOut] = Field(description="The results that are stored")
    attempts: list[AttemptOut]
    submissions: list[SubmissionOut]
    paid_submissions: int = Field(description="Orders that a provider did not reject")
    cost: Cost | None
    created_at: datetime
    available_at: datetime
    deadline_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: Links


STATUS_EXAMPLE: dict[str, Any] = {
    "id": _JOB_ID,
    "status": "processing",
    "reason": "claimed",
    "progress": 0.4,
    "failures": 0,
    "max_attempts": 4,
    "retry_at": None,
    "error": None,
    "media_ids": [MEDIA_EXAMPLE["id"]],
    "updated_at": "2026-11-20T12:00:00.005Z",
}


class JobStatusOut(BaseModel):
    """The light answer to "is it done?"."""

    model_config = ConfigDict(title="JobStatus", json_schema_extra={"examples": [STATUS_EXAMPLE]})

    id: UUID
    status: Status
    reason: Reason
    progress: float | None
    failures: int
    max_attempts: int
    retry_at: datetime | None = Field(description="When the next attempt is due, while one is awaited")
    error: ErrorOut | None
    media_ids: list[UUID]
    updated_at: datetime


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    items: list[JobOut]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null at the end")
