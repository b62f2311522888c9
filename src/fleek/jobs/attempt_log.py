"""What the log says of an attempt.

Each begins with `attempt_started`, and ends with `attempt_finished`, or with `lease_lost` where the job had
become somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import structlog

from fleek.core.job import JobError, Reason, Status
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.transitions import StoredMedia
from fleek.observability.records import private_text

_log = structlog.get_logger(__name__)

_PROMPT_SHOWN = 200
"""Characters of a prompt that are logged where prompts are logged at all."""


@contextmanager
def attempt_logged(job: ClaimedJob, provider: str, *, with_prompt: bool) -> Iterator[None]:
    """Every record of this task, and of tasks that it starts, says whose it is; none has the prompt.

    With `with_prompt` the beginning of the prompt is in the first record, and may be in others.
    """
    bound = {"job_id": str(job.id), "attempt": job.fence, "owner": job.owner}
    bound |= {"model": job.model, "provider": provider}
    with structlog.contextvars.bound_contextvars(**bound), private_text("" if with_prompt else job.prompt):
        shown = {"prompt": job.prompt[:_PROMPT_SHOWN]} if with_prompt else {}
        _log.info(
            "attempt_started",
            outputs=job.n,
            failures=job.view.failures,
            open_orders=len(job.open_orders),
            **shown,
        )
        yield


def tell_stored(media: Sequence[StoredMedia]) -> None:
    """All outputs of one order are in the object store."""
    _log.info(
        "outputs_stored",
        outputs=len(media),
        size_bytes=sum(one.size_bytes for one in media),
        content_types=sorted({one.content_type for one in media}),
    )


def tell_finished(
    status: Status,
    outcome: Reason,
    ran: timedelta,
    *,
    error: JobError | None = None,
    retry_in: timedelta | None = None,
) -> None:
    """The attempt's end is committed. With an error it is a warning; `status` is what became of the job."""
    facts = {"status": str(status), "outcome": str(outcome), "seconds": round(ran.total_seconds(), 4)}
    if error is None:
        _log.info("attempt_finished", **facts)
        return
    failure: dict[str, object] = {"code": str(error.code), "error": error.message}
    if status is Status.IN_QUEUE and retry_in is not None:
        failure["retry_in"] = round(retry_in.total_seconds(), 3)
    _log.warning("attempt_finished", **facts, **failure)
