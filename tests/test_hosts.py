"""Hosts and ports in settings, with IPv6 addresses in every form that people write."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.config import load_client, load_peer
from dstash.config.hosts import read_host, read_place, read_url
from dstash.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("peer1", "peer1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[10.0.0.1]", "10.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("[::1", None),
        ("::1]", None),
        ("[peer1]", None),
        ("[]", None),
        ("", None),
        ("::1::", None),
        ("peer1:5000", None),
        ("[::1]:5000", None),
    ],
)
def test_host_is_read_without_brackets(text: str, host: str | None) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("peer1", ("peer1", None)),
        ("peer1:5000", ("peer1", 5000)),
        ("10.0.0.1:5000", ("10.0.0.1", 5000)),
        ("[10.0.0.1]:5000", ("10.0.0.1", 5000)),
        ("[::1]", ("[::1]", None)),
        ("[::1]:5000", ("[::1]", 5000)),
        ("[fe80::1%eth0]:5000", ("[fe80::1%eth0]", 5000)),
        ("peer1:0", None),
        ("peer1:65536", None),
        ("peer1:", None),
        (":5000", None),
        ("[peer1]:5000", None),
        ("[::1]5000", None),
        ("a:b:5000", None),
        ("[::zz]:5000", None),
    ],
)
def test_place_is_read_with_an_ipv6_host_in_brackets(
    text: str, place: tuple[str, int | None] | None
) -> None:
    assert read_place(text) == place


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("::1", "[::1]"),
        ("::1:5000", "[::1]:5000"),
        ("fd00::1:5000", "[fd00::1]:5000"),
        ("fd00::abcd", "[fd00::abcd]"),
        ("fd00::1:65000", "[fd00::1]:65000"),
        ("1:2:3:4:5:6:7:8", "[1:2:3:4:5:6:7:8]"),
        ("1:2:3:4:5:6:7:8:5000", "[1:2:3:4:5:6:7:8]:5000"),
    ],
)
def test_ipv6_address_without_brackets_is_refused_with_the_right_form(
    text: str, advice: str
) -> None:
    for flags in (
        {"advertise": text},
        {"consul": f"http://{text}"},
        {"otlp_endpoint": f"http://{text}"},
    ):
        assert f"an IPv6 address needs brackets: {advice}" in _refusal(load_peer, flags)
    for peers in (text, f"tcp://{text}", f"dstash://{text}/?timeout=1"):
        assert f"an IPv6 address needs brackets: {advice}" in _refusal(
            load_client, {"peers": peers}
        )


def _refusal(load: Any, flags: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, {"data_dir": "d"} | flags if load is load_peer else flags, {})
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://[::1]:8500", "http://[::1]:8500"),
        ("http://[10.0.0.1]:8500", "http://10.0.0.1:8500"),
        ("https://[10.0.0.1]/", "https://10.0.0.1/"),
        ("http://me:secret@[10.0.0.1]:1/x?y", "http://me:secret@10.0.0.1:1/x?y"),
        ("http://consul:8500/a:b:c", "http://consul:8500/a:b:c"),
        ("[10.0.0.1]:8500", "[10.0.0.1]:8500"),
    ],
)
def test_url_is_read_without_brackets_around_ipv4(text: str, url: str) -> None:
    assert read_url(text) == url


def test_settings_take_ipv6_hosts_in_brackets() -> None:
    flags = {
        "data_dir": "d",
        "bind": "[::1]",
        "http_bind": "::1",
        "advertise": "[fd00::1]:5000",
        "consul": "http://[fd00::2]:8500/",
        "otlp_endpoint": "http://[::1]:4318/otlp",
    }
    settings = load_peer(None, flags, {})
    assert (settings.bind, settings.http_bind) == ("::1", "::1")
    assert settings.advertise == "[fd00::1]:5000"
    assert settings.consul == "http://[fd00::2]:8500"
    assert settings.otlp_endpoint == "http://[::1]:4318/otlp"
    client = load_client(None, {"peers": "[::1]:1,tcp://[10.0.0.1]:2"}, {})
    assert client.peers == ["tcp://[::1]:1", "tcp://10.0.0.1:2"]
    assert load_client(None, {"consul": "http://[::1]:8500"}, {}).consul == "http://[::1]:8500"
