"""The names of the package, and the arguments that a client takes its addresses from."""

from __future__ import annotations

import copy
import inspect
import pickle  # noqa: TID251  # to show that it is refused
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import dstash
from dstash import AsyncClient, Client, ConfigError, LimitError, NoPeers, errors

TWO = ["tcp://a:1", "tcp://b:2"]


def test_every_error_is_a_name_of_the_package() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.DStashError):
            assert getattr(dstash, name) is kind
            assert name in dstash.__all__


def test_public_names_exist_and_are_listed() -> None:
    assert dstash.__version__ == version("dstash")
    for name in dstash.__all__:
        assert hasattr(dstash, name)
    assert set(dstash.__all__) <= set(dir(dstash))
    assert not [name for name in dir(dstash) if name.startswith("_") and not name.endswith("__")]
    with pytest.raises(AttributeError, match="'dstash' has no attribute 'Nonsense'"):
        dstash.Nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("given", "options"),
    [
        (("a:1", "b:2"), {}),
        ((["a:1", "b:2"],), {}),
        ((("a:1",), "b:2"), {}),
        (("a:1,b:2",), {}),
        (("a:1, tcp://b:2,",), {}),
        (("dstash://a:1,b:2/",), {}),
        (("dstash://a:1,b:2",), {}),
        ((["dstash://a:1,b:2?cluster=dstash"],), {}),
        ((), {"peers": "a:1,b:2"}),
        ((), {"peers": ["a:1", "b:2"]}),
    ],
)
def test_addresses_are_arguments_or_a_list_or_a_text(
    kind: Any, given: tuple[Any, ...], options: dict[str, Any]
) -> None:
    client = kind(*given, **options)
    assert client.settings.peers == TWO


def test_address_sets_other_settings_and_arguments_override_them() -> None:
    with Client("dstash://a:1,b:2/?cluster=blue&timeout=2&read=one", timeout=3) as client:
        settings = client.settings
    assert (settings.cluster, settings.timeout, settings.read) == ("blue", 3.0, "one")


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        (("a",), {}, "argument peers is 'a'; allowed is tcp://host:port, with a port from 1 to"),
        ((5,), {}, "argument peers is [5]; allowed is a list of texts"),
        (("",), {}, "argument peers is ''; allowed is tcp://host:port"),
        (("a:1",), {"peers": "b:2"}, "peers are given twice: as arguments, and as peers="),
        ((), {"timeout": 0}, "argument timeout is 0; allowed is a number above 0 up to"),
        ((), {"timeot": 5}, "argument 'timeot' is unknown; did you mean 'timeout'?"),
        ((), {"write": "most"}, "argument write is 'most'; allowed is one | quorum | all"),
        ((), {"curve": True}, "argument curve: needs cert_file as well"),
        ((), {"consul_token": 5}, "argument consul_token is a malformed secret; allowed is a text"),
        (("dstash://a:1/?timeot=1",), {}, "dstash://a:1/: unknown key 'timeot'; did you mean"),
    ],
)
def test_wrong_argument_is_named_in_one_line_without_a_cause(
    given: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(*given, **options)
    assert str(caught.value).startswith(text)
    assert "command line" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_client_cannot_be_copied_or_pickled(kind: Any, copied: Any) -> None:
    text = f"{kind.__name__} cannot be copied or pickled; make one in each process"
    with pytest.raises(TypeError, match=text):
        copied(kind("a:1"))
    with pytest.raises(TypeError, match=text):
        pickle.dumps(kind("a:1").index("i"))


@pytest.mark.parametrize("exponent", [400, 5000])
def test_error_shows_a_huge_number_in_short(exponent: int) -> None:
    number, power = 10**exponent, rf"about 10\*\*{exponent}"
    with pytest.raises(ConfigError, match=power):
        Client("a:1", timeout=number)
    with Client("a:1") as client:
        with pytest.raises(LimitError, match=f"timeout is {power}"):
            client.lookup("i", "k", timeout=number)
        with pytest.raises(LimitError, match=f"ttl is {power}"):
            client.put("i", "k", 1, ttl=number)
        with pytest.raises(LimitError, match=f"ttl is {power}"):
            client.lock("name", ttl=number)


def test_repr_shows_addresses_but_no_secrets() -> None:
    client = Client("a:1", "b:2", cluster="blue", consul_token="s3cret")  # noqa: S106
    assert repr(client) == "<dstash.Client of cluster 'blue' at tcp://a:1, tcp://b:2>"
    client.close()
    assert repr(client) == "<dstash.Client of cluster 'blue' at tcp://a:1, tcp://b:2, closed>"
    consul = AsyncClient(consul="http://c:8500")
    assert repr(consul) == "<dstash.AsyncClient of cluster 'dstash' at http://c:8500>"
    assert repr(Client(local_dir="/x")) == "<dstash.Client of cluster 'dstash' at /x>"


def test_read_with_mistyped_directory_creates_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "mistyped"
    text = rf"there is no directory {missing}; is local_dir right"
    with Client(local_dir=missing, timeout=1) as client, pytest.raises(NoPeers, match=text):
        client.lookup("i", "k")
    options: dict[str, Any] = {"local_dir": tmp_path, "cluster": "mistyped", "timeout": 1}
    with Client(**options) as client, pytest.raises(NoPeers, match="lists no peer of cluster"):
        client.lookup("i", "k")
    assert list(tmp_path.iterdir()) == []
