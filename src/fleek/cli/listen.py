"""The port that `fleek up` listens on: who may reach it, and which one is free."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket

from fleek.cli.hosts import is_loopback
from fleek.core.errors import ConfigurationError

_PORTS_TRIED = 100
_BACKLOG = 2048
_ANSWER_SECONDS = 5.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  names to recognise, not to bind


def require_safe_host(host: str, *, insecure_no_auth: bool) -> None:
    """Raise ConfigurationError for an address that others can reach, unless the user insists."""
    if insecure_no_auth or is_loopback(host):
        return
    message = (
        f"--host {host} lets other machines reach this Fleek, and it asks nobody for a key yet: whoever "
        "reaches the port could see every picture and spend your money at paid providers. Stay on 127.0.0.1, "
        "or add --insecure-no-auth (FLEEK_INSECURE_NO_AUTH=true) if the network itself keeps others out"
    )
    raise ConfigurationError(message)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `port`, or on the next free one above it; port 0 takes any.

    It listens at once: from then on nobody else can take the port, and early clients wait instead of failing.
    Raises ConfigurationError when the address is not ours or no port is free.
    """
    family, address = _resolve(host)
    last = min(port + _PORTS_TRIED, 65_536) if port else 1
    for candidate in range(port, last):
        with contextlib.suppress(_Busy):
            return _listen(family, address, candidate)
    message = f"No port from {port} to {last - 1} is free on {host}; name another with --port"
    raise ConfigurationError(message)


def require_free(host: str, port: int) -> None:
    """Raise ConfigurationError where the api could not listen, before anything else is opened for it.

    Only asks: uvicorn binds by itself later, and may then still be told that somebody was quicker.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(_cannot_listen(host, port, error)) from error
    for family, *_, address in dict.fromkeys(found):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ConfigurationError(_cannot_listen(host, port, error)) from error


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port % 65_535 + 1
        return f"FLEEK_PORT: port {port} is busy on {host}; name another with --port, such as {other}"
    # The resolver's numbers are negative, and none of the system's.
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)
    what = f"cannot listen on {host} port {port}: {reason.lower()}"
    return f"FLEEK_HOST: {what}; name another with --host, such as 127.0.0.1"


def inherit(number: int) -> socket.socket:
    """The listening socket that another process gave us; raises ConfigurationError where there is none."""
    try:
        return socket.socket(fileno=number)
    except OSError as error:
        raise ConfigurationError(f"--fd {number} is no socket of this process") from error


def url_of(listener: socket.socket) -> str:
    """Where this machine reaches the socket."""
    address, port = listener.getsockname()[:2]
    address = _ANY_ADDRESS.get(address, address)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class _Busy(Exception):
    """Somebody listens there already."""


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        message = f"--host {host} cannot be resolved; name an address of this machine"
        raise ConfigurationError(message) from error
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, str(address[0])


def _listen(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _Busy from error
        reason = os.strerror(error.errno or 0).lower()
        message = f"Cannot listen on {address} port {port}: {reason}; name another with --host or --port"
        raise ConfigurationError(message) from error
    return listener


async def answers_ready(address: tuple[str, int]) -> bool:
    """Whether `/readyz` of the api at `address` answers 200."""
    host, port = _ANY_ADDRESS.get(address[0], address[0]), address[1]
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
    except OSError:  # TimeoutError is one.
        return False
    try:
        name = f"[{host}]" if ":" in host else host
        writer.write(f"GET /readyz HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await asyncio.wait_for(reader.readline(), _ANSWER_SECONDS)
        return status.split()[1:2] == [b"200"]
    except OSError:
        return False
    finally:
        writer.close()
