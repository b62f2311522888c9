"""Which network addresses a URL that somebody else chose may lead to.

`ipaddress.is_global` is no answer: it calls NAT64 and 6to4 forms of private addresses global, and its
tables change with the Python version. The tables here are the special-purpose registries of IANA, and
what clouds serve their metadata on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; clouds serve metadata in it
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's wire server, in public space
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is handed out for global unicast."""
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, benchmarks: an address in an address, or none at all
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_LOW_32_BITS = 2**32 - 1


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet, whatever it is written as."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    embedded = _embedded(address)
    if embedded is not None:
        return is_public(embedded)
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a mapped or a NAT64 address stands for."""
    if address in _NAT64:
        return IPv4Address(int(address) & _LOW_32_BITS)
    return address.ipv4_mapped


@dataclass(frozen=True, slots=True)
class AllowList:
    """Hosts and networks that the operator allows beside the public internet."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """From host names, addresses and networks such as `10.1.0.0/16`; ValueError names the wrong entry."""
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            network = _network_or_none(entry)
            if network is not None:
                networks.append(network)
            elif "/" in entry or ":" in entry or not entry:
                message = f"{entry!r} is neither a host name, nor an address, nor a network like 10.1.0.0/16"
                raise ValueError(message)
            else:
                hosts.add(entry.lower())
        return cls(frozenset(hosts), tuple(networks))

    def names(self, host: str) -> bool:
        """Whether the host of a URL is listed: by its name, or by the address it is written as."""
        if host.lower() in self.hosts:
            return True
        address = address_or_none(host)
        return address is not None and self.covers(address)

    def covers(self, address: Address) -> bool:
        """Whether an address lies in a listed network."""
        return any(address in network for network in self.networks)


def address_or_none(host: str) -> Address | None:
    """A host that is written as an address."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _network_or_none(entry: str) -> Network | None:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None
