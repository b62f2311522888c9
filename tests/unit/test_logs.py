"""What a process writes into its log: one form, no secrets, nothing that could forge a line."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars
from tests.logged import Written, logging_configured

from fleek.observability.logs import kept_records
from fleek.observability.records import (
    MAX_FIELDS,
    MAX_TEXT,
    MAX_TRACEBACK,
    Preparation,
    Record,
    hide_text,
    private_text,
)
from fleek.observability.redaction import REDACTED, Redactor

SECRET = "correct-horse-battery"
JOB = "01920000-0000-7000-8000-000000000001"

_log = structlog.get_logger("fleek.tests")
_library = logging.getLogger("somelibrary.part")


@pytest.fixture
def written() -> Iterator[Written]:
    """The log as JSON."""
    with logging_configured(secrets=[SECRET]) as written:
        yield written


@pytest.fixture
def pretty() -> Iterator[Written]:
    """The log for people."""
    with logging_configured(log_format="pretty", secrets=[SECRET]) as written:
        yield written


@pytest.fixture
def kept() -> Iterator[list[Record]]:
    records: list[Record] = []
    with logging_configured(secrets=[SECRET]), kept_records(records.append, Redactor([SECRET])):
        yield records


def fail(message: str) -> None:
    raise ValueError(message)


class TestJson:
    """One JSON object a line."""

    def test_a_record_has_its_time_level_event_facts_and_what_is_bound(self, written: Written) -> None:
        bind_contextvars(request_id="r-1", job_id=JOB)
        _log.info("something_done", count=3, name="x", parts=[1, {"a": None}])

        [event] = written.events()
        at = datetime.fromisoformat(event.pop("timestamp"))
        assert abs((datetime.now(UTC) - at).total_seconds()) < 60
        assert event == {
            "level": "info",
            "event": "something_done",
            "request_id": "r-1",
            "job_id": JOB,
            "count": 3,
            "name": "x",
            "parts": [1, {"a": None}],
        }

    def test_a_librarys_record_has_a_constant_event_and_its_own_words(self, written: Written) -> None:
        bind_contextvars(job_id=JOB)
        _library.warning("cannot reach %s", "there")

        [event] = written.events()
        assert event["event"] == "library_message"
        assert event["message"] == "cannot reach there"
        assert event["logger"] == "somelibrary.part"
        assert event["job_id"] == JOB

    def test_a_librarys_broken_format_is_no_error_of_ours(self) -> None:
        record = logging.makeLogRecord(
            {"msg": "%d of them", "args": ("no number",), "levelno": logging.WARNING}
        )

        assert Preparation(Redactor()).event(record)["message"] == "%d of them"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (f"the key is {SECRET}", f"the key is {REDACTED}"),
            ({"deep": [{"er": SECRET}]}, {"deep": [{"er": REDACTED}]}),
            ({"password": "abc"}, {"password": REDACTED}),
            ("Authorization: Bearer abcdefghij", f"Authorization: {REDACTED}"),
            (b"\x89PNG\r\n", "[6 bytes]"),
            (float("nan"), "nan"),
            ([float("inf")], ["Infinity"]),
            (ValueError(SECRET), f"ValueError: {REDACTED}"),
            ("line\nbreak\ttab\x00\x1b[31m\x9b\u202e\u2028", r"line\nbreak\ttab\x00\x1b[31m\x9b\u202e\u2028"),
            ("häuser 家", "häuser 家"),
        ],
    )
    def test_a_fact_is_safe(self, written: Written, value: object, shown: object) -> None:
        _log.info("something_done", fact=value)

        [event] = written.events()
        assert event["fact"] == shown

    def test_a_field_that_is_named_as_a_secret_is_hidden(self, written: Written) -> None:
        _log.info("something_done", api_key="abc")

        assert written.events()[0]["api_key"] == REDACTED

    @pytest.mark.parametrize("log", [_log, _library])
    def test_a_traceback_has_no_secrets_and_no_control_characters(self, written: Written, log: Any) -> None:
        try:
            fail(f"no {SECRET} \x1b[2J")
        except ValueError:
            log.exception("something_failed")

        [event] = written.events()
        assert event["error_type"] == "ValueError"
        assert event["exception"].startswith("Traceback (most recent call last):\n")
        assert event["exception"].endswith(f"\nValueError: no {REDACTED} \\x1b[2J")
        assert SECRET not in json.dumps(event)

    def test_long_records_are_cut(self, written: Written) -> None:
        many = {f"fact_{number}": number for number in range(1000)}
        try:
            fail("y" * 100_000)
        except ValueError as error:
            _log.info("something_failed", text="x" * 1_000_000, parts=["z" * 1_000_000], exc_info=error)
        _log.info("something_done", **many)

        failed, done = written.events()
        assert len(failed["text"]) < MAX_TEXT + 50
        assert len(failed["parts"]) < MAX_TEXT + 50
        assert len(failed["exception"]) < MAX_TRACEBACK + 50
        assert failed["exception"].endswith("yyy")
        assert len(done) == MAX_FIELDS + 3

    def test_a_private_text_is_hidden_wherever_it_is_repeated(self, written: Written) -> None:
        prompt = 'a "quiet" harbour\nat dawn'
        with private_text(prompt):
            _log.info("something_done", said=f"refused: {prompt}", shown=f"{[prompt]}", parts=[prompt])
            _log.error("something_failed", exc_info=ValueError(prompt))
        _log.info("something_done", said=prompt)

        found = written.events()
        assert "harbour" not in json.dumps(found[:2])
        assert found[0]["said"] == "refused: [prompt]"
        assert "harbour" in found[2]["said"]

    def test_what_a_context_hides_is_hidden_in_no_other(self, written: Written) -> None:
        def work() -> None:
            hide_text("a quiet harbour")
            _log.info("something_done", said="a quiet harbour, refused")

        contextvars.copy_context().run(work)
        _log.info("something_done", said="a quiet harbour")

        assert [event["said"] for event in written.events()] == ["[prompt], refused", "a quiet harbour"]


class TestPretty:
    """For people: nothing that a record says can pass for another one, or move the cursor."""

    def test_a_record_is_one_line(self, pretty: Written) -> None:
        _log.warning(
            "something_odd", said=f"{SECRET}\n2026-01-01 [info] forged \x1b[31m", parts=["\x1b[1m\n"]
        )
        _library.warning("bad\nluck")

        text = pretty.getvalue()
        assert len(text.splitlines()) == 2
        assert "\x1b" not in text
        assert SECRET not in text
        assert "something_odd" in text
        assert "bad\\nluck" in text

    def test_a_traceback_is_indented_and_safe(self, pretty: Written) -> None:
        try:
            fail(f"{SECRET}\n2026-01-01T00:00:00Z [info] forged\x1b[31m")
        except ValueError:
            _log.exception("something_failed")

        first, *rest = pretty.getvalue().splitlines()
        assert "something_failed" in first
        assert any("forged\\x1b[31m" in line for line in rest)
        assert all(line.startswith("    ") for line in rest)


class TestKept:
    """Which records somebody may keep."""

    @pytest.mark.parametrize(
        ("level", "bound", "is_kept"),
        [
            ("debug", {"job_id": JOB, "attempt": 1}, False),
            ("info", {"job_id": JOB, "attempt": 1}, True),
            ("info", {"job_id": JOB}, False),
            ("info", {}, False),
            ("warning", {}, True),
            ("error", {}, True),
            ("critical", {}, True),
        ],
    )
    def test_warnings_errors_and_whatever_belongs_to_an_attempt(
        self, kept: list[Record], level: str, bound: dict[str, Any], is_kept: bool
    ) -> None:
        with bound_contextvars(**bound):
            getattr(_log, level)("something_done")

        assert [record.level for record in kept] == ([level] if is_kept else [])

    def test_a_record_is_split_into_its_columns(self, kept: list[Record]) -> None:
        with bound_contextvars(job_id=JOB, attempt=3, request_id="r-1", owner="local"):
            _log.warning("something_odd", key=SECRET, count=1)

        [record] = kept
        assert (record.job_id, record.attempt, record.request_id) == (UUID(JOB), 3, "r-1")
        assert (record.level, record.event) == ("warning", "something_odd")
        assert record.data == {"owner": "local", "key": REDACTED, "count": 1}
        assert record.at.tzinfo is not None

    @pytest.mark.parametrize(
        ("bound", "data"),
        [
            ({"job_id": "nonsense"}, {"job_id": "nonsense"}),
            ({"attempt": "x"}, {"attempt": "x"}),
            ({"attempt": 2**40}, {"attempt": 2**40}),
        ],
    )
    def test_what_fits_no_column_is_a_fact(
        self, kept: list[Record], bound: dict[str, Any], data: dict[str, Any]
    ) -> None:
        _log.warning("something_odd", **bound)

        [record] = kept
        assert (record.job_id, record.attempt) == (None, None)
        assert record.data == data

    @pytest.mark.parametrize("threshold", ["debug", "warning", "error"])
    def test_what_is_kept_does_not_depend_on_what_is_printed(self, threshold: str) -> None:
        records: list[Record] = []
        with (
            logging_configured(threshold) as written,
            kept_records(records.append, Redactor()),
            bound_contextvars(job_id=JOB, attempt=1),
        ):
            _log.info("something_done")
            _log.warning("something_odd")

        assert [record.event for record in records] == ["something_done", "something_odd"]
        printed = {"debug": 2, "warning": 1, "error": 0}
        assert len(written.events()) == printed[threshold]

    @pytest.mark.parametrize("name", ["fleek.logs", "fleek.logs.sink", "sqlalchemy.pool", "asyncpg"])
    def test_what_keeping_itself_uses_is_never_kept(self, kept: list[Record], name: str) -> None:
        structlog.get_logger(name).error("something_failed")
        logging.getLogger(name).error("it failed")

        assert kept == []

    def test_libraries_are_heard_from_warnings_on(self, kept: list[Record]) -> None:
        with bound_contextvars(job_id=JOB, attempt=1):
            _library.info("talk")
            _library.warning("trouble")

        assert [record.data["message"] for record in kept] == ["trouble"]

    def test_a_keeper_that_fails_breaks_nothing(self, written: Written) -> None:
        def refuse(_record: Record) -> None:
            raise RuntimeError

        with kept_records(refuse, Redactor()):
            _log.warning("something_odd")

        assert [event["event"] for event in written.events()] == ["something_odd"]

    def test_nothing_is_kept_after_the_block(self, written: Written) -> None:
        records: list[Record] = []
        with kept_records(records.append, Redactor()):
            pass
        _log.warning("something_odd")

        assert len(written.events()) == 1
        assert records == []

    def test_records_of_other_threads_are_kept(self, kept: list[Record]) -> None:
        thread = threading.Thread(target=lambda: _log.warning("something_odd"))
        thread.start()
        thread.join()

        assert [record.event for record in kept] == ["something_odd"]

    async def test_what_one_task_binds_is_not_said_of_another(self, kept: list[Record]) -> None:
        async def work(number: int) -> None:
            with bound_contextvars(job_id=f"{JOB[:-1]}{number}", attempt=number):
                for _ in range(3):
                    _log.info("something_done", number=number)
                    await asyncio.sleep(0)

        await asyncio.gather(*(work(number) for number in range(1, 5)))

        assert len(kept) == 12
        assert all(record.attempt == record.data["number"] for record in kept)
        assert all(str(record.job_id)[-1] == str(record.attempt) for record in kept)
