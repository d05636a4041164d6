"""The addresses that a peer announces."""

from __future__ import annotations

import pytest

from dstash.config import load_peer
from dstash.peer.daemon import _advertised, _announced_http


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ({"bind": "::1"}, "tcp://[::1]:5555"),
        ({"bind": "[::1]"}, "tcp://[::1]:5555"),
        ({"advertise": "[fd00::1]"}, "tcp://[fd00::1]:5555"),
        ({"advertise": "[fd00::1]:5000"}, "tcp://[fd00::1]:5000"),
        ({"advertise": "[10.0.0.1]"}, "tcp://10.0.0.1:5555"),
        ({"advertise": "peer1.example.org:5000"}, "tcp://peer1.example.org:5000"),
    ],
)
def test_advertised_address_has_ipv6_host_in_brackets(flags: dict[str, str], address: str) -> None:
    settings = load_peer(None, {"data_dir": "d"} | flags, {})
    assert _advertised(settings, "tcp://127.0.0.1:5555") == address


@pytest.mark.parametrize(
    ("bind", "http", "announced"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080", "http://[::1]:8080"),
        ("*", "http://*:8080", "http://peer1.example.org:8080"),
        ("::", "http://[::]:8080", "http://peer1.example.org:8080"),
        ("0.0.0.0", "http://0.0.0.0:8080", "http://peer1.example.org:8080"),  # noqa: S104
    ],
)
def test_announced_http_url_can_be_reached_by_others(bind: str, http: str, announced: str) -> None:
    assert _announced_http(http, bind, "tcp://peer1.example.org:5000") == announced


def test_announced_http_url_has_ipv6_host_in_brackets() -> None:
    assert _announced_http("http://*:1", "*", "tcp://[fd00::1]:5000") == "http://[fd00::1]:1"
