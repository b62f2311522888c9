"""Errors to Sentry, where a DSN names one; nobody else imports its SDK.

The SDK is used as a client only: it builds, queues and sends events, on a thread of its own. None of its
integrations is on, so nothing is patched and nothing is collected by itself. The one way in is the log:
what is logged as an error with its exception is reported (`reports.py`).
"""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx2
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sentry_sdk.types import Event as SdkEvent, Hint
from sentry_sdk.utils import BadDsn, Dsn, event_from_exception

from fleek.core.errors import ConfigurationError
from fleek.observability.redaction import Redactor
from fleek.observability.reports import Event, Report, Reporter, tags_of, without_quotes

if TYPE_CHECKING:
    from sentry_sdk._types import DataCollectionUserOptions

CLOSE_SECONDS = 2.0
"""How long the end of a process waits for reports that are still to be sent."""
_QUEUE = 50
"""Reports that wait to be sent; more are dropped."""
_ANSWER_SECONDS = 10.0
_AGENT = "fleek"
_NOTHING: DataCollectionUserOptions = {
    "user_info": False,
    "cookies": {"mode": "off"},
    "http_headers": {"request": {"mode": "off"}},
    "http_bodies": [],
    "url_query_params": {"mode": "off"},
    "graphql": {"document": False, "variables": False},
    "gen_ai": {"inputs": False, "outputs": False},
    "database_query_data": False,
    "queues": False,
    "stack_frame_variables": False,
}
"""What the SDK may collect by itself: no personal data and no input, whatever its defaults become."""
_KEPT = frozenset(
    {
        *("event_id", "timestamp", "start_timestamp", "type", "platform", "level", "logger", "transaction"),
        *("release", "environment", "server_name", "sdk", "tags", "extra", "contexts", "breadcrumbs"),
        *("exception", "message", "spans", "transaction_info"),
    }
)
"""Parts of an event that leave; the SDK's others, such as request, user and modules, do not."""


@dataclass(frozen=True, slots=True)
class SentryOptions:
    """Where errors go, and what they are told apart by."""

    dsn: str = field(repr=False)
    process: str
    """`api` or `worker`."""
    release: str
    environment: str
    traces_sample_rate: float = 0.0


class Sentry:
    """One process's reports, from `start_sentry` until `close`."""

    def __init__(self, options: SentryOptions, redactor: Redactor) -> None:
        self._options = options
        self._client = _create_client(options, redactor)
        self._reporter = Reporter(self._send)
        logging.getLogger().addHandler(self._reporter)

    def close(self) -> None:
        """Send what waits, within `CLOSE_SECONDS`, and report nothing more."""
        logging.getLogger().removeHandler(self._reporter)
        self._client.close(timeout=CLOSE_SECONDS)

    def trace(self, operation: str, name: str, seconds: float, *, is_ok: bool, **tags: object) -> None:
        """Report how long something took that has just ended, for the configured share of all calls."""
        if random.random() >= self._options.traces_sample_rate:  # noqa: S311  a sample, no secret
            return
        self._client.capture_event(cast("SdkEvent", self._transaction(operation, name, seconds, is_ok, tags)))

    def _transaction(
        self, operation: str, name: str, seconds: float, is_ok: bool, tags: dict[str, object]
    ) -> Event:
        now = time.time()
        trace = {
            "trace_id": f"{random.getrandbits(128):032x}",
            "span_id": f"{random.getrandbits(64):016x}",
            "op": operation,
            "status": "ok" if is_ok else "internal_error",
        }
        return {
            "type": "transaction",
            "transaction": name,
            "transaction_info": {"source": "route"},
            "start_timestamp": now - seconds,
            "timestamp": now,
            "contexts": {"trace": trace},
            "tags": {"process": self._options.process} | tags_of(tags),
        }

    def _send(self, report: Report) -> None:
        self._client.capture_event(cast("SdkEvent", self._event(report)))

    def _event(self, report: Report) -> Event:
        event: Event = {}
        if report.error is not None:
            mechanism = {"type": "logging", "handled": True}
            made, _ = event_from_exception(
                report.error, client_options=self._client.options, mechanism=mechanism
            )
            event = without_quotes(cast("Event", made))
        return event | {
            "level": report.level,
            "logger": report.logger,
            **({} if report.error else {"message": report.name}),
            "tags": {"process": self._options.process, "event": report.name} | tags_of(report.facts),
            "extra": {"suppressed": report.suppressed},
            "breadcrumbs": {"values": report.crumbs},
        }


def start_sentry(options: SentryOptions, redactor: Redactor) -> Sentry:
    """Report this process's errors from now on. Raises ConfigurationError for a DSN that is none."""
    try:
        return Sentry(options, redactor)
    except (BadDsn, ValueError):
        raise ConfigurationError(
            "SENTRY_DSN: is no Sentry DSN; such as https://key@o1.ingest.sentry.io/2"
        ) from None


@dataclass(frozen=True, slots=True)
class TestReport:
    """What came of a test event."""

    accepted: bool
    event_id: str
    detail: str


def send_test_error(options: SentryOptions, redactor: Redactor) -> TestReport:
    """Send one event, built and scrubbed as any other, and wait for what Sentry says to it."""
    kept = _Kept()
    client = _create_client(options, redactor, kept)
    event = {
        "level": "error",
        "logger": "fleek.doctor",
        "message": "A test error, sent by fleek doctor",
        "tags": {"process": options.process, "event": "test_error"},
    }
    event_id = client.capture_event(cast("SdkEvent", event)) or ""
    client.close()
    return _post(Dsn(options.dsn), kept.envelopes[0].serialize(), event_id)


def _post(dsn: Dsn, body: bytes, event_id: str) -> TestReport:
    auth = dsn.to_auth(_AGENT)
    headers = {"X-Sentry-Auth": auth.to_header(), "Content-Type": "application/x-sentry-envelope"}
    try:
        answer = httpx2.post(auth.get_api_url(), content=body, headers=headers, timeout=_ANSWER_SECONDS)
    except httpx2.HTTPError as error:
        return TestReport(
            accepted=False, event_id=event_id, detail=f"{dsn.netloc} does not answer: {type(error).__name__}"
        )
    if answer.is_success:
        return TestReport(accepted=True, event_id=event_id, detail=f"{dsn.netloc} accepted event {event_id}")
    detail = f"{dsn.netloc} refused the event with status {answer.status_code}"
    return TestReport(accepted=False, event_id=event_id, detail=detail)


class _Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep one."""
        self.envelopes.append(envelope)


def _create_client(
    options: SentryOptions, redactor: Redactor, transport: Transport | None = None
) -> sentry_sdk.Client:
    scrub = _scrubber(redactor)
    return sentry_sdk.Client(
        options.dsn,
        release=options.release,
        environment=options.environment,
        server_name=socket.gethostname(),
        transport=transport,
        transport_queue_size=_QUEUE,
        shutdown_timeout=CLOSE_SECONDS,
        before_send=scrub,
        before_send_transaction=scrub,
        # Integrations patch what they know; the log is the only way in here.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[],
        # What could hold a prompt, a key or a client's address.
        data_collection=_NOTHING,
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        # What would talk by itself.
        auto_session_tracking=False,
        enable_backpressure_handling=False,
        send_client_reports=False,
        propagate_traces=False,
        spotlight=False,
        debug=False,
    )


def _scrubber(redactor: Redactor) -> Callable[[SdkEvent, Hint], SdkEvent | None]:
    def scrub(event: SdkEvent, _: Hint) -> SdkEvent | None:
        kept = {name: value for name, value in cast("dict[str, Any]", event).items() if name in _KEPT}
        return cast("SdkEvent", redactor.value(kept))

    return scrub
