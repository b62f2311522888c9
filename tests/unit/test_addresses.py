"""Which addresses are public: every disguise of a private one that is known."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, strategies as st

from fleek.core.addresses import AllowList, address_or_none, is_public


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "172.15.255.255",
        "172.32.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "168.63.129.15",
        "2606:4700:4700::1111",
        "2a00:1450:4001:82b::200e",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  an address to refuse
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.1.2.3",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.19.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:100.100.100.200",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1.1.1.1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:101:101::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456:789a::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_of_anything_else_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


@given(st.ip_addresses(v=4))
def test_a_disguise_changes_nothing(address: IPv4Address) -> None:
    mapped = IPv6Address(f"::ffff:{address}")
    translated = IPv6Address(f"64:ff9b::{address}")

    assert is_public(mapped) == is_public(translated) == is_public(address)


@given(st.ip_addresses())
def test_what_python_calls_private_or_local_is_never_public(address: IPv4Address | IPv6Address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(address) or getattr(address, "ipv4_mapped", None) is not None


def test_an_allow_list_names_hosts_addresses_and_networks() -> None:
    allowed = AllowList.parse(["Minio.internal", "127.0.0.1", "10.1.0.0/16", "10.2.3.4/16", "fd00::/8"])

    assert allowed.names("minio.INTERNAL")
    assert allowed.names("127.0.0.1")
    assert allowed.names("10.1.255.1")
    assert allowed.names("10.2.255.1")
    assert allowed.names("fd00::1")
    assert allowed.covers(ip_address("10.1.2.3"))
    assert not allowed.names("sub.minio.internal")
    assert not allowed.names("127.0.0.2")
    assert not allowed.names("localhost")
    assert not allowed.covers(ip_address("10.3.0.1"))


@pytest.mark.parametrize("entry", ["", "10.0.0.0/33", "http://minio", "minio:9000", "minio/x", "::1/x"])
def test_an_entry_that_means_nothing_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="is neither a host name, nor an address, nor a network"):
        AllowList.parse(["minio", entry])


@pytest.mark.parametrize("host", ["example.com", "0x7f.1", "127.1", "2130706433", "", "[::1]"])
def test_only_a_plain_address_is_read_as_one(host: str) -> None:
    assert address_or_none(host) is None
