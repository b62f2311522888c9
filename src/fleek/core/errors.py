"""Every error that Fleek raises on purpose.

The tree::

    FleekError
    ├── ConfigurationError            a setting is wrong; the start stops
    ├── InvalidRequest                the payload breaks a rule; carries pointers
    │   ├── MalformedRequest          it could not be read at all
    │   ├── InvalidCursor
    │   ├── InvalidIdempotencyKey
    │   └── IdempotencyMismatch       the key was used with another body
    ├── NotFound                      unknown, or somebody else's
    ├── Conflict                      right request, wrong state
    │   ├── NotReady                  the result is still being made
    │   ├── IdempotencyInFlight
    │   ├── JobNotFinished
    │   ├── JobNotRetryable
    │   └── WouldPayAgain
    ├── Gone                          the result existed, and was deleted or expired
    ├── Forbidden                     a signature is wrong or has expired
    ├── Unavailable                   a part that Fleek needs is away; try again
    │   ├── DatabaseUnavailable
    │   │   └── DatabaseReadOnly      it answers, and refuses to write
    │   ├── SchemaOutdated            its schema is older than this release needs
    │   └── StorageUnavailable
    ├── LeaseLost                     the job belongs to another worker now: touch nothing
    ├── OutputError                   a provider's result cannot be stored
    │   ├── OutputInvalid
    │   └── OutputTooLarge
    └── ProviderError                 a provider said no; `kind` decides what happens next

A domain error carries a stable `code` and says whether trying again can help. It never knows
an HTTP status: `fleek.api.problems` is the one place that maps these classes to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar


class FleekError(Exception):
    """Base of all errors; `message` is safe to show: it names rules, never secrets or input."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(FleekError):
    """A setting is missing or wrong; the message names it and gives an example."""

    code = "configuration_error"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: an RFC 6901 pointer into the body, or a parameter's name, and what is wrong."""

    pointer: str
    message: str


class InvalidRequest(FleekError):
    """The request was understood and breaks a rule."""

    code = "invalid_request"

    def __init__(self, message: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations


class MalformedRequest(InvalidRequest):
    """The request could not be read: not JSON, not UTF-8, nested too deep."""

    code = "malformed_request"


class InvalidCursor(InvalidRequest):
    """The cursor was altered, or made for another list, filter or owner."""

    code = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__("The cursor does not belong to this list; start again without one")


class InvalidIdempotencyKey(InvalidRequest):
    """The Idempotency-Key header is empty, too long, repeated or not visible ASCII."""

    code = "invalid_idempotency_key"

    def __init__(self) -> None:
        super().__init__("Idempotency-Key must be sent once, as 1 to 255 visible ASCII characters")


class IdempotencyMismatch(InvalidRequest):
    """The key was already used with another body."""

    code = "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with a different request body; use a new key")


class NotFound(FleekError):
    """No such thing, or it belongs to somebody else: the two look the same on purpose."""

    code = "not_found"

    def __init__(self, what: str) -> None:
        super().__init__(f"No such {what}")


class Conflict(FleekError):
    """The request is right, but the thing is in a state that does not allow it."""

    code = "conflict"


class NotReady(Conflict):
    """The result is still being made."""

    code = "not_ready"
    retryable = True

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__("The media is not stored yet; its job is still running")
        self.retry_after = retry_after


class IdempotencyInFlight(Conflict):
    """Another request with the same key is being accepted at this moment."""

    code = "idempotency_in_flight"
    retryable = True
    retry_after = timedelta(seconds=1)

    def __init__(self) -> None:
        super().__init__("A request with this Idempotency-Key is in progress; ask again shortly")


class JobNotFinished(Conflict):
    """Only a finished job can be deleted."""

    code = "job_not_finished"

    def __init__(self) -> None:
        super().__init__("The job has not finished; cancel it first")


class JobNotRetryable(Conflict):
    """Only a job that ended as `error` or `canceled` can be retried."""

    code = "job_not_retryable"

    def __init__(self) -> None:
        super().__init__("Only a job that ended in error or was canceled can be retried")


class WouldPayAgain(Conflict):
    """A retry could place a second paid order, and nobody allowed that."""

    code = "would_pay_again"

    def __init__(self) -> None:
        super().__init__(
            "An earlier order of this job may have been paid; "
            "raise max_paid_submissions in the request to allow another one"
        )


class Gone(FleekError):
    """The result existed; it expired or was deleted."""

    code = "gone"

    def __init__(self) -> None:
        super().__init__("The media has expired or was deleted")


class Forbidden(FleekError):
    """A signed URL was altered or has expired."""

    code = "forbidden"

    def __init__(self) -> None:
        super().__init__("The signed URL is not valid or has expired; ask for a new one")


class Unavailable(FleekError):
    """A part that Fleek needs does not answer; nothing was lost, try again."""

    code = "unavailable"
    retryable = True
    retry_after = timedelta(seconds=2)


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer."""

    code = "database_unavailable"

    def __init__(self) -> None:
        super().__init__("The database does not answer; try again shortly")


class DatabaseReadOnly(DatabaseUnavailable):
    """PostgreSQL answers, and takes no writes: a standby, or a primary that was told so."""

    code = "database_read_only"

    def __init__(self) -> None:
        super(DatabaseUnavailable, self).__init__(
            "The database takes no writes at the moment; try again shortly"
        )


class SchemaOutdated(Unavailable):
    """Migrations have yet to run."""

    code = "schema_outdated"

    def __init__(self) -> None:
        super().__init__(
            "The database's schema is older than this release needs: `fleek db upgrade` is missing"
        )


class StorageUnavailable(Unavailable):
    """The object store does not answer."""

    code = "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The object store does not answer; try again shortly")


class LeaseLost(FleekError):
    """Another worker owns the job now: stop, and touch nothing more."""

    code = "lease_lost"

    def __init__(self) -> None:
        super().__init__("The lease of this job was lost")


class OutputError(FleekError):
    """What the provider delivered cannot be stored."""


class OutputInvalid(OutputError):
    """The bytes are not a media type that Fleek stores."""

    code = "output_invalid"
    retryable = True


class OutputTooLarge(OutputError):
    """The output is larger than the operator allows."""

    code = "output_too_large"


class ProviderErrorKind(StrEnum):
    """What a provider's refusal means for the job; the retry table is in `core.retry`."""

    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    PROVIDER_BUG = "provider_bug"
    THROTTLED = "throttled"
    AMBIGUOUS = "ambiguous"
    PERMANENT_INPUT = "permanent_input"
    PERMANENT_POLICY = "permanent_policy"
    PERMANENT_AUTH = "permanent_auth"
    QUOTA_EXHAUSTED = "quota_exhausted"
    RESULT_EXPIRED = "result_expired"
    """The order was accepted, and its result is not there any more: it may be paid for."""


class ProviderError(FleekError):
    """A provider failed or refused. `kind` decides; vendor exceptions stop at the adapter's edge."""

    code = "provider_error"

    def __init__(
        self,
        kind: ProviderErrorKind,
        message: str,
        *,
        retry_after: timedelta | None = None,
        ends_order: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.ends_order = ends_order
        """Said by a poll: the order itself has ended without a result, whatever the kind."""
