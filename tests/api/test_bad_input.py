"""Input that clients send by mistake or on purpose: every row is refused as documented, and never a 500.

Rows are sent as raw bytes over a socket, since clients' libraries would repair or refuse many of them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message
from structlog.testing import capture_logs
from tests.api.serving import Api, problem

from fleek.api.problems import HttpProblem
from fleek.api.strict_json import read_json

GENERATE = "/v1/media/generate"
JSON = [("Content-Type", "application/json")]
JOB_ID = "01920000-0000-7000-8000-000000000001"
SECRET = "marker4711"
"""Stands for what a client sent; no answer may repeat it."""


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": SECRET} | fields).encode()


MALFORMED = {
    "nothing": b"",
    "not JSON": b"prompt=x",
    "cut off": b'{"prompt": "x"',
    "something behind it": b'{"prompt": "x"} x',
    "two values": b'{"prompt": "x"}{"prompt": "y"}',
    "single quotes": b"{'prompt': 'x'}",
    "a comma too many": b'{"prompt": "x",}',
    "a comment": b'{"prompt": "x" /* c */}',
    "a control character in a string": b'{"prompt": "a\x01b"}',
    "a number with 5000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "100 k nested arrays": b'{"prompt": "x", "input": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "the same key twice": b'{"prompt": "x", "prompt": "y"}',
    "the same key twice inside": b'{"prompt": "x", "input": {"a": [{"b": 1, "b": 2}]}}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "UTF-8 with a byte order mark": b"\xef\xbb\xbf" + body(),
    "bytes that are no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_cannot_be_read_is_a_400(api: Api, content: bytes) -> None:
    answer = api.ask("POST", GENERATE, JSON, content)

    assert problem(answer.json()) == (400, "malformed_request")


INVALID: dict[str, tuple[bytes, list[str]]] = {
    "null": (b"null", [""]),
    "a list": (b"[]", [""]),
    "a string": (b'"x"', [""]),
    "no prompt": (b"{}", ["/prompt"]),
    "an empty prompt": (body(prompt=""), ["/prompt"]),
    "a prompt of 8001 characters": (body(prompt="é" * 8001), ["/prompt"]),
    "NUL in the prompt": (body(prompt="a\0b"), ["/prompt"]),
    "a lone surrogate": (b'{"prompt": "a\\ud800b"}', ["/prompt"]),
    "a lone low surrogate": (b'{"prompt": "a\\udc00b"}', ["/prompt"]),
    "a prompt that is a number": (body(prompt=1), ["/prompt"]),
    "a prompt that is null": (body(prompt=None), ["/prompt"]),
    "NUL in the negative prompt": (body(negative_prompt="\0"), ["/negative_prompt"]),
    "NUL in the model": (body(model="\0"), ["/model"]),
    "NUL in a metadata key": (body(metadata={"\0": "x"}), ["/metadata"]),
    "NUL in a metadata value": (body(metadata={"x": "\0"}), ["/metadata"]),
    "NUL deep in the input": (body(input={"a": [{"b": "\0"}]}), ["/input"]),
    "a lone surrogate in a key of the input": (b'{"prompt": "x", "input": {"\\ud800": 1}}', ["/input"]),
    "NaN": (b'{"prompt": "x", "input": {"a": NaN}}', []),
    "Infinity": (b'{"prompt": "x", "input": {"a": Infinity}}', []),
    "-Infinity": (b'{"prompt": "x", "seed": -Infinity}', []),
    "1e400": (b'{"prompt": "x", "input": {"a": 1e400}}', []),
    "a huge fraction": (b'{"prompt": "x", "input": {"a": ' + b"9" * 5000 + b".0}}", []),
    "a seed of 2^70": (body(seed=2**70), ["/seed"]),
    "a seed of 2^32": (body(seed=2**32), ["/seed"]),
    "a negative seed": (body(seed=-1), ["/seed"]),
    "900 levels of input": (b'{"prompt": "x", "input": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}", ["/input"]),
    "17 levels of input": (b'{"prompt": "x", "input": {"a": ' + b"[" * 16 + b"]" * 16 + b"}}", ["/input"]),
    "an unknown field": (body(is_admin=True), ["/is_admin"]),
    "n as text": (body(n="2"), ["/n"]),
    "n as truth": (body(n=True), ["/n"]),
    "n as a fraction": (body(n=2.0), ["/n"]),
    "n of 0": (body(n=0), ["/n"]),
    "n of 9": (body(n=9), ["/n"]),
    "width without height": (body(width=512), [""]),
    "a width that is no multiple of 8": (body(width=513, height=512), ["/width"]),
    "sides that are too small and too large": (body(width=8, height=8192), ["/width", "/height"]),
    "an unknown format": (body(output_format="gif"), ["/output_format"]),
    "a priority beyond the bounds": (body(priority=11), ["/priority"]),
    "no attempt": (body(max_attempts=0), ["/max_attempts"]),
    "a deadline of a second": (body(deadline_seconds=1), ["/deadline_seconds"]),
    "17 metadata keys": (body(metadata={str(key): "" for key in range(17)}), ["/metadata"]),
    "5 kB of metadata": (body(metadata={"k": "x" * 5000}), ["/metadata"]),
    "metadata with a number": (body(metadata={"k": 1}), ["/metadata/k"]),
    "input that is a list": (body(input=[]), ["/input"]),
    "a key that looks like a pointer": (body(metadata={"a/b~c": 1}), ["/metadata/a~1b~0c"]),
}


@pytest.mark.parametrize(("content", "pointers"), INVALID.values(), ids=INVALID)
def test_a_body_that_breaks_a_rule_is_a_422_that_says_where(
    api: Api, content: bytes, pointers: list[str]
) -> None:
    answer = api.ask("POST", GENERATE, JSON, content)

    found = answer.json()
    assert problem(found) == (422, "invalid_request")
    assert [error["pointer"] for error in found.get("errors", [])] == pointers
    assert SECRET.encode() not in answer.body


MEDIA_TYPES = {
    "none": [],
    "text": [("Content-Type", "text/plain")],
    "a form": [("Content-Type", "application/x-www-form-urlencoded")],
    "a form with parts": [("Content-Type", "multipart/form-data; boundary=x")],
    "a kind of JSON": [("Content-Type", "application/problem+json")],
    "another charset": [("Content-Type", "application/json; charset=iso-8859-1")],
    "an empty charset": [("Content-Type", "application/json; charset=")],
    "two": [("Content-Type", "application/json"), ("Content-Type", "application/json")],
    "empty": [("Content-Type", "")],
    "garbage": [("Content-Type", "application/json\xff")],
}


@pytest.mark.parametrize("headers", MEDIA_TYPES.values(), ids=MEDIA_TYPES)
def test_any_other_media_type_is_a_415(api: Api, headers: list[tuple[str, str]]) -> None:
    answer = api.ask("POST", GENERATE, headers, body())

    assert problem(answer.json()) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=utf-8",
        'application/json; charset="UTF-8"',
    ],
)
def test_json_in_utf_8_is_taken_however_it_is_spelt(api: Api, media_type: str) -> None:
    assert api.ask("POST", GENERATE, [("Content-Type", media_type)], body()).status == 202


def test_a_body_beyond_the_limit_is_a_413_whether_its_length_is_announced_or_not(api: Api) -> None:
    large = body(prompt=SECRET * 30_000)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    announced = api.ask("POST", GENERATE, JSON, large)
    headers = [*JSON, ("Transfer-Encoding", "chunked")]
    unannounced = api.ask("POST", GENERATE, headers, chunked, with_length=False)

    assert problem(announced.json()) == (413, "content_too_large")
    assert problem(unannounced.json()) == (413, "content_too_large")
    assert SECRET.encode() not in announced.body + unannounced.body


def test_an_announced_200_mb_body_is_refused_before_it_is_sent(api: Api) -> None:
    answer = api.ask("POST", GENERATE, [*JSON, ("Content-Length", str(200 * 1024 * 1024))], b"")

    assert problem(answer.json()) == (413, "content_too_large")


IDS = {
    "not a UUID": "x",
    "another version": "4c9d2b5e-6d2f-4f0e-9d7e-2f1c4d0a9b11",
    "without hyphens": JOB_ID.replace("-", ""),
    "in braces": "%7B" + JOB_ID + "%7D",
    "NUL": "%00",
    "invalid UTF-8": "%ff%fe",
    "a path": "..%2f..%2fetc%2fpasswd",
    "dots": "..",
    "10 kB": "a" * 10_240,
    "an injection": "%27%20OR%201=1--",
    "newlines": "%0d%0aX-Evil:%201",
}
ID_ROUTES = {
    "status": ("GET", "/v1/media/status/{}"),
    "job": ("GET", "/v1/media/jobs/{}"),
    "delete": ("DELETE", "/v1/media/jobs/{}"),
    "cancel": ("POST", "/v1/media/jobs/{}/cancel"),
    "retry": ("POST", "/v1/media/jobs/{}/retry"),
    "events": ("GET", "/v1/media/jobs/{}/events"),
    "media": ("GET", "/v1/media/{}"),
    "delete media": ("DELETE", "/v1/media/{}"),
    "content": ("GET", "/v1/media/content/{}"),
    "content without a version": ("GET", "/media/content/{}"),
}


@pytest.mark.parametrize("identifier", IDS.values(), ids=IDS)
@pytest.mark.parametrize(("method", "path"), ID_ROUTES.values(), ids=ID_ROUTES)
def test_an_id_that_cannot_be_ours_is_a_404(api: Api, method: str, path: str, identifier: str) -> None:
    answer = api.ask(method, path.format(identifier))

    assert problem(answer.json()) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), ID_ROUTES.values(), ids=ID_ROUTES)
@pytest.mark.parametrize("identifier", [IDS["not a UUID"], IDS["another version"], IDS["NUL"]])
def test_an_impossible_id_is_answered_just_like_one_that_is_not_there(
    api: Api, method: str, path: str, identifier: str
) -> None:
    impossible = api.ask(method, path.format(identifier)).json()
    missing = api.ask(method, path.format(JOB_ID)).json()

    assert impossible | {"request_id": ""} == missing | {"request_id": ""}


QUERIES = {
    "limit of 0": ("limit=0", "limit"),
    "a negative limit": ("limit=-1", "limit"),
    "a limit of 101": ("limit=101", "limit"),
    "a limit of 10^9": ("limit=1000000000", "limit"),
    "a limit of 10^22": ("limit=10000000000000000000000", "limit"),
    "a limit in words": ("limit=ten", "limit"),
    "a limit with a fraction": ("limit=5.0", "limit"),
    "a limit with an underscore": ("limit=1_0", "limit"),
    "an empty limit": ("limit=", "limit"),
    "two limits": ("limit=1&limit=2", "limit"),
    "a misspelt filter": ("stauts=completed", "stauts"),
    "an unknown status": ("status=done", "status"),
    "an empty status": ("status=", "status"),
    "an unknown code": ("code=bad_luck", "code"),
    "an empty code": ("code=", "code"),
    "a status in place of a code": ("code=error", "code"),
    "NUL in words": ("q=a%00b", "q"),
    "empty words": ("q=", "q"),
    "too many words": ("q=" + "a" * 501, "q"),
    "NUL in the model": ("model=%00", "model"),
    "NUL in a metadata value": ("metadata.a=%00", "query"),
    "NUL in a metadata key": ("metadata.%00=a", "query"),
    "metadata without a key": ("metadata.=a", "query"),
    "metadata alone": ("metadata=a", "metadata"),
    "17 metadata keys": ("&".join(f"metadata.k{key}=" for key in range(17)), "metadata"),
    "a time that is a number": ("created_after=1600000000", "created_after"),
    "a time that is a date": ("created_after=2026-11-20", "created_after"),
    "a time without a zone": ("created_after=2026-11-20T12:00:00", "created_after"),
    "a time whose plus became a space": ("created_before=2026-11-20T12:00:00+01:00", "created_before"),
    "a time that does not exist": ("created_before=2026-02-30T12:00:00Z", "created_before"),
    "a time in words": ("created_before=yesterday", "created_before"),
    "a name of 10 kB": ("a" * 10_240 + "=1", "query"),
}


@pytest.mark.parametrize(("query", "pointer"), QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("path", ["/v1/media/jobs", "/v1/media"])
def test_a_query_that_breaks_a_rule_is_a_422_that_names_the_parameter(
    api: Api, path: str, query: str, pointer: str
) -> None:
    answer = api.ask("GET", f"{path}?{query}")

    found = answer.json()
    assert problem(found) == (422, "invalid_request")
    assert [error["pointer"] for error in found["errors"]] == [pointer]
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "query",
    [
        "created_after=0001-01-01T00:00:00%2B23:59",
        "created_before=9999-12-31T23:59:59-23:59",
        "created_after=2026-11-20t12:00:00.123456789z",
        "q=%22",
        "q=%26%7C!",
        "q=%EF%BF%BF",
        "q=%F0%9F%92%A1",
        "q=%ff",
        "model=%E2%80%AE",
        "metadata.a%20b=%2F",
        "metadata.a.b=",
        "limit=100",
    ],
)
@pytest.mark.parametrize("path", ["/v1/media/jobs", "/v1/media"])
def test_an_odd_query_that_breaks_no_rule_is_answered(api: Api, path: str, query: str) -> None:
    assert api.ask("GET", f"{path}?{query}").status == 200


CURSORS = {
    "empty": "",
    "NUL": "%00",
    "a byte": "%ff",
    "not base64": "%21%21%21",
    "text": "abc",
    "another version": "AgAGKPX2dUAAAZIAAAAAcACAAAAAAAAAAax4bHqm5uVvYlV3M0V3mG0",
    "10 kB": "A" * 10_240,
    "padding": "%3D%3D%3D%3D",
}


@pytest.mark.parametrize("cursor", CURSORS.values(), ids=CURSORS)
@pytest.mark.parametrize("path", ["/v1/media/jobs", "/v1/media"])
def test_a_cursor_that_was_not_made_here_is_a_400(api: Api, path: str, cursor: str) -> None:
    answer = api.ask("GET", f"{path}?cursor={cursor}")

    assert problem(answer.json()) == (400, "invalid_cursor")


@pytest.mark.parametrize(
    "query",
    ["wait=0", "wait=56", "wait=-1", "wait=x", "wait=1.0", "include=all", "wait=1&wait=1", "until=end"],
)
def test_a_status_query_that_breaks_a_rule_is_a_422(api: Api, query: str) -> None:
    answer = api.ask("GET", f"/v1/media/status/{JOB_ID}?{query}")

    assert problem(answer.json()) == (422, "invalid_request")


@pytest.mark.parametrize(
    "query",
    ["variant=w9.webp", "variant=../x", "variant=", "redirect=maybe", "redirect=0", "proxy=on", "size=1"],
)
def test_a_content_query_that_breaks_a_rule_is_a_422(api: Api, query: str) -> None:
    answer = api.ask("GET", f"/v1/media/content/{JOB_ID}?{query}")

    assert problem(answer.json()) == (422, "invalid_request")


@pytest.mark.parametrize("value", ["-1", "x", "", "1.0", "99999999999999999999", "0x1", "\xff", "1, 2"])
def test_a_last_event_id_that_is_none_is_a_400(api: Api, value: str) -> None:
    accepted = api.ask("POST", GENERATE, JSON, body()).json()
    answer = api.ask("GET", f"/v1/media/jobs/{accepted['id']}/events", [("Last-Event-ID", value)])

    assert problem(answer.json()) == (400, "invalid_last_event_id")


@pytest.mark.parametrize("content", [b"[]", b'{"max_paid_submissions": 0}', b'{"force": true}', b'"x"'])
def test_a_retry_body_that_breaks_a_rule_is_a_422(api: Api, content: bytes) -> None:
    answer = api.ask("POST", f"/v1/media/jobs/{JOB_ID}/retry", JSON, content)

    assert problem(answer.json()) == (422, "invalid_request")


async def test_a_body_that_does_not_arrive_is_a_408() -> None:
    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HttpProblem) as raised:
        await read_json(request, required=True, within=0.05)

    assert (raised.value.status, raised.value.code) == (408, "request_timeout")
    assert raised.value.headers == {"Connection": "close"}


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(api: Api) -> None:
    with capture_logs() as logs, socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(
            b"POST /media/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt"'
        )
        connection.close()
        time.sleep(0.3)

    assert logs == []


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
        b"NONSENSE\r\n\r\n",
    ],
    ids=["no host", "two hosts", "two lengths", "200 kB header", "not HTTP"],
)
def test_broken_http_is_refused_with_a_4xx_or_cut_off(api: Api, raw: bytes) -> None:
    try:
        received = api.exchange(raw.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    except ConnectionError:
        received = b""

    assert received == b"" or received.split()[1] in {b"400", b"431"}
