"""The port of `fleek up`."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fleek.cli.hosts import is_loopback
from fleek.cli.listen import bind, inherit, require_free, require_safe_host, url_of
from fleek.core.errors import ConfigurationError

_EVERYWHERE = "0.0.0.0"  # noqa: S104  never served in a test: a listener that nobody accepts from


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A listener of somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        (_EVERYWHERE, False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_only_this_machine_s_own_addresses_are_safe(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_open_address_is_refused_with_the_reason_and_the_way_around() -> None:
    with pytest.raises(ConfigurationError, match=r"spend your money.*--insecure-no-auth"):
        require_safe_host(_EVERYWHERE, insecure_no_auth=False)


def test_an_open_address_is_allowed_to_whoever_insists() -> None:
    require_safe_host(_EVERYWHERE, insecure_no_auth=True)


def test_a_busy_port_means_the_next_free_one(taken: socket.socket) -> None:
    port = taken.getsockname()[1]

    with bind("127.0.0.1", port) as listener:
        assert port < listener.getsockname()[1] < port + 100


def test_port_0_takes_any_port() -> None:
    with bind("localhost", 0) as listener:
        assert listener.getsockname()[1] > 0


def test_the_port_is_ours_before_anybody_accepts() -> None:
    """The kernel keeps early clients waiting; they are not refused while the api still imports."""
    with (
        bind("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()[:2], timeout=5) as early,
    ):
        assert early.getpeername() == listener.getsockname()


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_a_name_that_means_nothing_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="cannot be resolved"):
        bind("no-such-host.invalid", 0)


def test_no_free_port_is_told_with_the_range() -> None:
    """Above the last port there is nothing to try."""
    with socket.socket() as last:
        last.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        last.bind(("127.0.0.1", 65_535))
        last.listen()

        with pytest.raises(ConfigurationError, match="No port from 65535 to 65535 is free"):
            bind("127.0.0.1", 65_535)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), (_EVERYWHERE, "127.0.0.1")])
def test_the_url_is_one_that_this_machine_can_open(host: str, shown: str) -> None:
    with bind(host, 0) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


def test_a_port_that_is_taken_is_named_before_an_api_opens_anything(taken: socket.socket) -> None:
    port = taken.getsockname()[1]

    with pytest.raises(
        ConfigurationError, match=rf"^FLEEK_PORT: port {port} is busy on 127\.0\.0\.1; .*such as"
    ):
        require_free("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_somebody_else_is_named_before_an_api_opens_anything(host: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^FLEEK_HOST: cannot listen on {host} port 8000: .*such as"
    ):
        require_free(host, 8000)


@pytest.mark.parametrize("host", ["127.0.0.1", _EVERYWHERE])
def test_a_free_port_stays_free_after_it_was_asked_for(host: str, taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    taken.close()
    require_free(host, port)

    with bind(host, port) as listener:
        assert listener.getsockname()[1] == port


def test_a_number_that_is_no_socket_is_a_wrong_command() -> None:
    with pytest.raises(ConfigurationError, match="--fd 4000 is no socket"):
        inherit(4000)
