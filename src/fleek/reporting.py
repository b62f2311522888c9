"""Floor 4, upon the composition root: the reports of a process's errors, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from fleek import __version__
from fleek.bootstrap.parts import build_redactor
from fleek.core.errors import ConfigurationError
from fleek.settings import Settings, list_misnamed

if TYPE_CHECKING:
    from fleek.observability.sentry import Sentry, SentryOptions, TestReport

_log = structlog.get_logger(__name__)

_NO_DSN = "SENTRY_DSN: is not set, and nowhere to send to; such as https://public-key@o1.ingest.sentry.io/2"


def start_reporting(settings: Settings, process: str) -> Sentry | None:
    """Report errors of this process from now on, if a DSN says where to; `close` the result at its end.

    `process` is `api` or `worker`.
    """
    if settings.sentry_dsn is None:
        return None
    # Its SDK takes time and memory, which only those give who use it.
    from fleek.observability.sentry import start_sentry  # noqa: PLC0415

    return start_sentry(_options(settings, process), build_redactor(settings))


def send_test_report(settings: Settings) -> TestReport:
    """Report one error as a test; raises ConfigurationError where no DSN says where to."""
    if settings.sentry_dsn is None:
        raise ConfigurationError(_NO_DSN)
    from fleek.observability.sentry import send_test_error  # noqa: PLC0415  see above

    return send_test_error(_options(settings, "doctor"), build_redactor(settings))


def warn_of_misnamed() -> None:
    """A variable that sets nothing looks as if it did: mostly it is misspelt."""
    for name, meant in list_misnamed().items():
        _log.warning("unknown_setting", variable=name, did_you_mean=meant)


def _options(settings: Settings, process: str) -> SentryOptions:
    from fleek.observability.sentry import SentryOptions  # noqa: PLC0415  see above

    assert settings.sentry_dsn is not None  # noqa: S101  asked before
    return SentryOptions(
        dsn=settings.sentry_dsn.get_secret_value(),
        process=process,
        release=settings.sentry_release or f"fleek@{__version__}",
        environment=settings.sentry_environment,
        traces_sample_rate=settings.sentry_traces_sample_rate,
    )
