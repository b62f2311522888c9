"""A backend that speaks Replicate's protocol over a real socket, keeps a ledger, and misbehaves when told to.

In a test, on the test's own event loop::

    async with ReplicateServer() as vendor:
        vendor.on("create", status=503)                    # the next create, once
        vendor.on("get", times=None, chance=0.1, cut="after")
        ... base_url = vendor.url, token = vendor.token ...
        assert len(vendor.accepted) == 1

As a process of its own: `python -m tests.replicate_server --port 0 --ledger creates.jsonl` prints its
address as one line of JSON. What `on` does is `POST /admin/rules` there; `DELETE /admin/rules`,
`GET /admin/ledger` and `POST /admin/predictions/{id}` with `{"lost": true}` or `{"expired": true}` do what
their names say.

An order can also bring its own script, as its input `fake`: `{"end": "failed", "error": "NSFW"}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.http_wire import Request, as_json, read_request, whole
from tests.replicate_files import serve_file
from tests.replicate_openapi import schemas_of, validator
from tests.replicate_predictions import FAKE, Prediction, Script, deadline_after

TOKEN = "r8_test_token"
_PART = r"([\w.-]+)"


@dataclass(slots=True)
class Rule:
    """What happens to some requests: `on` is a route's name, or `*`."""

    on: str
    script: Mapping[str, Any]
    times: int | None = 1
    """How many requests it is for; None: all."""
    chance: float = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request that is being answered."""

    request: Request
    script: Script
    writer: asyncio.StreamWriter


class Refusal(Exception):
    """The request is answered with a problem."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.answer = as_json(status, {"title": detail, "detail": detail, "status": status})


Handler = Callable[..., Awaitable[bytes | None]]


class ReplicateServer:
    """The fake; a context manager on the running loop."""

    def __init__(
        self,
        *,
        port: int = 0,
        ledger: Path | None = None,
        seed: int = 0,
        page: int = 100,
        token: str = TOKEN,
    ) -> None:
        self.token = token
        self.ledger: list[dict[str, Any]] = []
        """Every create that arrived, in order: those that were refused too."""
        self.requests: list[tuple[str, Request]] = []
        """Every request, with the name of its route."""
        self.predictions: dict[str, Prediction] = {}
        self.connections = 0
        self._port = port
        self._ledger_file = ledger
        self._page = page
        self._random = random.Random(seed)  # noqa: S311  chance, no secret
        self._rules: list[Rule] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: list[tuple[str, str, re.Pattern[str], Handler]] = [
            (name, method, re.compile(pattern), handler)
            for name, method, pattern, handler in (
                ("create", "POST", rf"/v1/(models)/{_PART}/{_PART}/predictions", self._create),
                ("create", "POST", rf"/v1/(deployments)/{_PART}/{_PART}/predictions", self._create),
                ("create", "POST", r"/v1/(predictions)", self._create),
                ("list", "GET", r"/v1/predictions", self._list),
                ("get", "GET", rf"/v1/predictions/{_PART}", self._get),
                ("cancel", "POST", rf"/v1/predictions/{_PART}/cancel", self._cancel),
                ("model", "GET", rf"/v1/models/{_PART}/{_PART}(?:/versions/{_PART})?", self._model),
                ("file", "GET", rf"/(?:v1/)?files/{_PART}/(\d+)\.png", self._file),
                ("admin", "POST", r"/admin/rules", self._add_rules),
                ("admin", "DELETE", r"/admin/rules", self._drop_rules),
                ("admin", "GET", r"/admin/ledger", self._tell_ledger),
                ("admin", "POST", rf"/admin/predictions/{_PART}", self._change),
            )
        ]

    async def __aenter__(self) -> Self:
        for port in (self._port, 0):
            self._servers.append(await asyncio.start_server(self._converse, "127.0.0.1", port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuse connections from now on, and end those that are open."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def origin(self) -> str:
        """Scheme, host and port of the API."""
        return f"http://127.0.0.1:{self._servers[0].sockets[0].getsockname()[1]}"

    @property
    def foreign_origin(self) -> str:
        """Another host, as far as a client can tell."""
        return f"http://127.0.0.1:{self._servers[1].sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """The `base_url`."""
        return f"{self.origin}/v1"

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The creates that cost money."""
        return [entry for entry in self.ledger if entry["id"] is not None]

    def on(self, route: str, *, times: int | None = 1, chance: float = 1.0, **script: Any) -> None:
        """Say what happens to a route's next requests: create, get, list, cancel, model, file, or `*`."""
        Script(**script)
        self._rules.append(Rule(route, script, times, chance))

    def forget_rules(self) -> None:
        """Behave from now on."""
        self._rules.clear()

    def requests_to(self, route: str) -> list[Request]:
        """What arrived at a route."""
        return [request for name, request in self.requests if name == route]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            while (request := await read_request(reader)) is not None and await self._answer(request, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client has left.
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        name, handler, found = self._find(request)
        self.requests.append((name, request))
        call = Call(request, self._script(name, request), writer)
        await asyncio.sleep(call.script.delay)
        if call.script.cut == "before":
            return False
        try:
            answer = await self._act(name, handler, call, found)
        except Refusal as refusal:
            if name == "create":
                self._enter(request, None, refusal.status)
            answer = refusal.answer
        await asyncio.sleep(call.script.reply_delay)
        if answer is None or call.script.cut == "after":
            return False
        writer.write(answer)
        await writer.drain()
        return True

    def _find(self, request: Request) -> tuple[str, Handler, tuple[str, ...]]:
        for name, method, pattern, handler in self._routes:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return name, handler, match.groups()
        return "unknown", self._unknown, ()

    def _script(self, name: str, request: Request) -> Script:
        """What the order itself says, and above that the first rule that is for it."""
        given = request.json() if name == "create" else None
        values = given.get("input") if isinstance(given, dict) else None
        script = Script.read(values.get(FAKE) if isinstance(values, dict) else None)
        for rule in self._rules if name != "admin" else ():
            if rule.on in {name, "*"} and self._random.random() < rule.chance:
                if rule.times is not None:
                    rule.times -= 1
                self._rules = [kept for kept in self._rules if kept.times != 0]
                return script.overridden_by(rule.script)
        return script

    async def _act(self, name: str, handler: Handler, call: Call, found: tuple[str, ...]) -> bytes | None:
        """Do what was asked, unless the script refuses it, and answer what the script says."""
        script = call.script
        is_api = call.request.path.startswith("/v1/")
        if is_api and call.request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "You did not pass a valid authentication token")
        if script.status is None and script.body is None:
            return await handler(call, *found)
        status = script.status or 200
        if script.accepted:
            await handler(call, *found)
        elif name == "create":
            self._enter(call.request, None, status)
        if isinstance(script.body, str):
            return whole(status, script.body.encode(), "text/html", script.headers)
        body = {"detail": "As the script asks", "status": status} if script.body is None else script.body
        return as_json(status, body, script.headers)

    async def _create(self, call: Call, kind: str, owner: str = "", name: str = "") -> bytes:
        body = call.request.json()
        schema = (
            "schemas_version_prediction_request" if kind == "predictions" else "schemas_prediction_request"
        )
        if not validator(schema).is_valid(body):
            raise Refusal(422, "The body does not fit the published schema")
        if owner == "missing":
            raise Refusal(404, "The requested resource could not be found.")
        try:
            deadline = deadline_after(call.request.headers.get("cancel-after"), now := datetime.now(UTC))
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        version = str(body.get("version", "hidden")).rpartition(":")[2]
        prediction = Prediction(
            id=secrets.token_hex(13),
            model=f"{owner}/{name}" if kind == "models" else "acme/model",
            version=version,
            deployment=f"{owner}/{name}" if kind == "deployments" else None,
            input=body["input"],
            script=call.script,
            created_at=now,
            deadline=deadline,
            lost=call.script.end == "lost",
        )
        self.predictions[prediction.id] = prediction
        self._enter(call.request, prediction.id, 201)
        return as_json(201, self._told(prediction))

    async def _get(self, _call: Call, prediction_id: str) -> bytes:
        prediction = self._known(prediction_id)
        prediction.looks += 1
        return as_json(200, self._told(prediction))

    async def _cancel(self, _call: Call, prediction_id: str) -> bytes:
        prediction = self._known(prediction_id)
        now = datetime.now(UTC)
        if prediction.status(now) in {"starting", "processing"}:
            prediction.canceled_at = now
        return as_json(200, self._told(prediction))

    async def _list(self, call: Call) -> bytes:
        """Newest first, in pages; the cursor is a number, and keeps the filters."""
        query = dict(call.request.query)
        after, before = (_moment(query.get(name)) for name in ("created_after", "created_before"))
        found = [
            self._told(prediction)
            for prediction in reversed(self.predictions.values())
            if not prediction.lost
            and (after is None or prediction.created_at >= after)
            and (before is None or prediction.created_at < before)
        ]
        start = int(query.pop("cursor", 0))
        end = start + self._page
        following = "&".join(f"{key}={value}" for key, value in query.items())
        more = f"https://api.replicate.com/v1/predictions?cursor={end}&{following}" if found[end:] else None
        return as_json(200, {"next": more, "previous": None, "results": found[start:end]})

    async def _model(self, _call: Call, owner: str, name: str, version: str | None) -> bytes:
        if owner == "missing":
            raise Refusal(404, "The requested resource could not be found.")
        schema = {"components": {"schemas": schemas_of(owner)}} if owner != "silent" else None
        found = {"id": version or "v1", "created_at": "2026-01-01T00:00:00Z", "openapi_schema": schema}
        if version:
            return as_json(200, found)
        return as_json(200, {"owner": owner, "name": name, "visibility": "public", "latest_version": found})

    async def _file(self, call: Call, prediction_id: str, index: str) -> None:
        prediction = self.predictions[prediction_id]
        script = call.script if call.script != Script() else prediction.script
        path = f"/files/{prediction_id}/{index}.png"
        content = prediction.files()[int(index)]
        await serve_file(call.writer, content, script, self.foreign_origin + path, self.origin + path)

    async def _unknown(self, _call: Call) -> bytes:
        raise Refusal(404, "The requested resource could not be found.")

    async def _add_rules(self, call: Call) -> bytes:
        given = call.request.json()
        for rule in given if isinstance(given, list) else [given]:
            self.on(rule.pop("on"), **rule)
        return as_json(200, {"rules": len(self._rules)})

    async def _drop_rules(self, _call: Call) -> bytes:
        self.forget_rules()
        return as_json(200, {"rules": 0})

    async def _tell_ledger(self, _call: Call) -> bytes:
        return as_json(200, self.ledger)

    async def _change(self, call: Call, prediction_id: str) -> bytes:
        prediction = self.predictions[prediction_id]
        for name, value in call.request.json().items():
            setattr(prediction, name, value)
        return as_json(200, {"id": prediction_id})

    def _known(self, prediction_id: str) -> Prediction:
        prediction = self.predictions.get(prediction_id)
        if prediction is None or prediction.lost:
            raise Refusal(404, "The requested resource could not be found.")
        return prediction

    def _told(self, prediction: Prediction) -> dict[str, Any]:
        hosts = {"own": self.origin, "api": self.url, "foreign": self.foreign_origin}
        return prediction.as_json(datetime.now(UTC), self.url, f"{hosts[prediction.script.host]}/files")

    def _enter(self, request: Request, prediction_id: str | None, status: int) -> None:
        """Write a create into the ledger: `id` is None where it was refused and cost nothing."""
        body = request.json()
        entry = {
            "id": prediction_id,
            "at": datetime.now(UTC).isoformat(),
            "path": request.path,
            "status": status,
            "input": body.get("input") if isinstance(body, dict) else None,
            "headers": dict(request.headers),
        }
        self.ledger.append(entry)
        if self._ledger_file is not None:
            with self._ledger_file.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


async def main() -> None:
    """Run until a signal, or until whoever holds the standard input is gone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with ReplicateServer(port=given.port, ledger=given.ledger, seed=given.seed) as server:
        sys.stdout.write(json.dumps({"base_url": server.url, "token": server.token}) + "\n")
        sys.stdout.flush()
        await ended.wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
