"""What stands behind a DSN in tests: an HTTP server that takes envelopes as Sentry does, or does not."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

KEY = "0123456789abcdef0123456789abcdef"


class SentryReceiver:
    """Keeps every envelope that was sent to it; answers with `status` after `delay` seconds."""

    def __init__(self) -> None:
        self.status, self.delay = 200, 0.0
        self.bodies: list[bytes] = []
        """Each envelope, unpacked."""
        self.headers: list[dict[str, str]] = []
        handler = type("Handler", (_Handler,), {"receiver": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def dsn(self) -> str:
        """Where to send."""
        return f"http://{KEY}@127.0.0.1:{self._server.server_port}/42"

    @property
    def raw(self) -> bytes:
        """All that was ever sent, as it was on the wire but unpacked."""
        return b"\n".join(self.bodies)

    def items(self, kind: str = "event") -> list[dict[str, Any]]:
        """The payloads of one kind, in the order of their arrival."""
        return [payload for body in list(self.bodies) for found, payload in _items(body) if found == kind]

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], object], kind: str = "event", seconds: float = 30
    ) -> dict[str, Any]:
        """The first payload that is as wanted; AssertionError when none comes."""
        deadline = time.monotonic() + seconds
        while not (found := [item for item in self.items(kind) if wanted(item)]):
            assert time.monotonic() < deadline, f"no such {kind}: {self.items(kind)}"
            time.sleep(0.02)
        return found[0]

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    receiver: ClassVar[SentryReceiver]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        assert self.path == "/api/42/envelope/"
        self.receiver.bodies.append(body)
        self.receiver.headers.append(dict(self.headers.items()))
        time.sleep(self.receiver.delay)
        answer = b'{"id":"0"}'
        with suppress(ConnectionError):  # The client may have gone meanwhile.
            self.send_response(self.receiver.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _items(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type and payload of each item: a line with headers, then as many bytes as they say, or a line."""
    _, _, rest = body.partition(b"\n")
    while rest.strip():
        head, _, rest = rest.partition(b"\n")
        headers = json.loads(head)
        size = headers.get("length", rest.find(b"\n") if b"\n" in rest else len(rest))
        payload, rest = rest[:size], rest[size:].removeprefix(b"\n")
        yield headers["type"], json.loads(payload)


@contextmanager
def open_receiver() -> Iterator[SentryReceiver]:
    """A receiver, until the block ends."""
    receiver = SentryReceiver()
    try:
        yield receiver
    finally:
        receiver.close()
