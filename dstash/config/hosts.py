"""Hosts, with or without a port, as settings have them: names, IPv4 addresses, and IPv6 addresses.

Where a port may follow, an IPv6 address is in brackets: ``fd00::1:5000`` is an address by itself.
Brackets around an IPv4 address are allowed and removed, so that a file which puts an address of
either kind into a setting, such as a manifest of Kubernetes, can always write them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_PLACE: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>\d{1,5}))?")
_URL: Final = re.compile(r"(?P<scheme>https?://)(?P<user>[^/?#]*@)?(?P<place>[^/?#]*)(?P<rest>.*)")
_PORTS: Final = range(1, 65_536)


def is_address(text: str) -> bool:
    """Return whether a text is an IPv4 address, or an IPv6 address without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a socket bound to ``host`` can be reached from this machine only."""
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def read_host(text: str) -> str | None:
    """Return a host without brackets; None if the text is no host.

    Args:
        text: a host without a port, so an IPv6 address needs no brackets.
    """
    if text[:1] + text[-1:] == "[]":
        return text[1:-1] if is_address(text[1:-1]) else None
    return text if is_address(text) or _NAME.fullmatch(text) else None


def read_place(text: str) -> tuple[str, int | None] | None:
    """Return a host, in brackets if it is an IPv6 address, and its port; None if malformed.

    Raises:
        ValueError: an IPv6 address is not in brackets; the text says how to write it.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        refuse_bare_ipv6(text)
        return None
    host = read_host(found["host"])
    port = None if found["port"] is None else int(found["port"])
    if host is None or (port is not None and port not in _PORTS):
        return None
    return (f"[{host}]" if ":" in host else host), port


def refuse_bare_ipv6(text: str) -> None:
    """Raise ``ValueError`` if a text is an IPv6 address without brackets, or that and a port."""
    host, _, port = text.rpartition(":")
    if ":" in host and is_address(host) and port.isdigit():
        raise ValueError(f"an IPv6 address needs brackets: [{host}]:{port}")
    if is_address(text):
        raise ValueError(f"an IPv6 address needs brackets: [{text}]")


def read_url(text: str) -> str:
    """Return an http or https URL without brackets around an IPv4 address; other texts unchanged.

    Raises:
        ValueError: an IPv6 address is not in brackets; the text says how to write it.
    """
    found = _URL.fullmatch(text)
    if found is None:
        return text
    place = found["place"]
    if place.count(":") > 1:
        refuse_bare_ipv6(place)
    inner = re.sub(r"^\[([0-9.]+)\]", r"\1", place)
    return f"{found['scheme']}{found['user'] or ''}{inner}{found['rest']}"
