"""Tests of the behaviour that the blocking and the asyncio client share."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from dstash import Client, Undecodable
from dstash.client.calls import Calls
from dstash.errors import (
    BatchError,
    ChangeConflict,
    ClosedError,
    LimitError,
    NoPeers,
    ProtocolError,
    UndecodableValue,
    UnsupportedType,
    UsageError,
)
from dstash.wire.values import TypeRegistry
from tests.harness.asynchronous import driven
from tests.harness.peers import Peers
from tests.harness.ports import free_port

VALUES: list[Any] = [None, True, 0, -(2**70), 1.5, "ü", b"\x00\xff", [1, [2]], {"a": {1: None}}]
VALUES += [(1, 2), {1, 2}, Decimal("1.10"), dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC)]


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, seeds: list[str]) -> Iterator[Any]:
    """A client of either kind."""
    if request.param == "blocking":
        with Client(*seeds, timeout=20) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        made = driven(runner, *seeds, timeout=20)
        yield made
        made.close()


def test_lookup_returns_the_value_that_was_put(client: Any, index: str) -> None:
    for number, value in enumerate(VALUES):
        client.put(index, number, value)
        found = client.lookup(index, number, default="missing")
        assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("key", ["text", b"bytes", 7, -(2**63), "ü" * 200])
def test_keys_of_every_type(client: Any, index: str, key: Any) -> None:
    client.put(index, key, "value", write="all")
    assert client.lookup(index, key) == "value"
    assert list(client.keys(index)) == [key]


def test_indexes_names_an_index_once_it_has_records(client: Any, index: str) -> None:
    assert index not in {found.name for found in client.indexes()}
    client.batch_put(index, {"a": 1, "b": 2}, write="all")
    assert {found.name: found.records for found in client.indexes()}[index] == 2


def test_drop_removes_all_keys_and_spares_later_writes(client: Any, index: str) -> None:
    client.batch_put(index, {f"k{number}": number for number in range(1000)})
    other = f"{index[:50]} other"
    client.batch_put(other, {"a": 1})
    client.drop(index, "k99")
    assert client.count(index) == 989
    client.index(index).drop("k98")
    assert client.count(index) == 978
    client.index(index).drop()
    assert client.count(index) == 0
    assert client.batch_lookup(index, ["k1", "k2"]) == {}
    client.put(index, "k1", "new")
    assert dict(client.items(index)) == {"k1": "new"}
    assert client.lookup(other, "a") == 1
    with pytest.raises(LimitError, match="index name has 0 bytes"):
        client.drop("")


def test_settings_of_an_index_apply_to_later_puts(client: Any, index: str) -> None:
    client.put(index, "before", 1)
    topology = client.admin.set_index(index, ttl=dt.timedelta(hours=1), max_ttl=7200)
    assert topology.index_settings(index).ttl == 3_600_000
    assert (index, 3600.0, 7200.0) in client.index_settings()
    client.batch_put(index, {"short": 1, "more": 2})
    client.put(index, "long", 1, ttl=86_400)
    assert client.ttl(index, "before") is None
    assert 3500 < client.ttl(index, "short") <= 3600
    assert 7100 < client.ttl(index, "long") <= 7200
    client.touch(index, "short", None)
    assert 7100 < client.ttl(index, "short") <= 7200
    client.admin.set_index(index, max_ttl=None)
    client.touch(index, "short", None)
    assert client.ttl(index, "short") is None
    assert (index, 3600.0, None) in client.index_settings()
    client.admin.set_index(index, ttl=None)
    assert index not in {found.name for found in client.index_settings()}
    with pytest.raises(LimitError, match=r"max_ttl is 0 s; allowed is more than 0 s"):
        client.admin.set_index(index, max_ttl=0)
    with pytest.raises(UsageError, match="no setting 'tll' of an index; there are ttl, max_ttl"):
        client.admin.set_index(index, tll=1)


def test_lookup_of_missing_key_returns_the_default(client: Any, index: str) -> None:
    assert client.lookup(index, "missing") is None
    assert client.lookup(index, "missing", 5) == 5
    assert client.exists(index, "missing") is False
    with pytest.raises(KeyError):
        client.ttl(index, "missing")


def test_none_is_stored_as_value(client: Any, index: str) -> None:
    client.put(index, "key", None)
    assert client.lookup(index, "key", "default") is None
    assert client.exists(index, "key") is True


def test_delete_returns_whether_the_key_existed(client: Any, index: str) -> None:
    client.put(index, "key", 1)
    assert client.delete(index, "key") is True
    assert client.delete(index, "key") is False
    assert client.exists(index, "key") is False


def test_time_to_live(client: Any, index: str) -> None:
    client.put(index, "key", 1, ttl=60)
    assert 50 < client.ttl(index, "key") <= 60
    assert client.touch(index, "key", None) is True
    assert client.ttl(index, "key") is None
    assert client.touch(index, "key", 30) is True
    assert 20 < client.ttl(index, "key") <= 30
    assert client.touch(index, "missing", 30) is False


def test_batches(client: Any, index: str) -> None:
    entries = {f"key-{number}": number for number in range(5000)}
    result = client.batch_put(index, entries, write="all")
    assert (result.ok, result.stored) == (True, 5000)
    assert client.batch_put(index, iter([("again", 1), ("again", 2)]), write="all").stored == 1
    assert client.batch_lookup(index, [*entries, "missing"]) == entries
    assert client.count(index) == 5001
    assert client.batch_delete(index, ["again", "missing"], write="all").deleted == 1
    assert dict(client.items(index)) == entries
    assert set(client.keys(index, prefix="key-49")) == {key for key in entries if "key-49" in key}


#: Calls of a client or index that write an empty batch.
EMPTY_BATCHES: dict[str, tuple[Any, ...]] = {
    "batch_put": ({},),
    "batch_delete": ([],),
    "batch_add": ([],),
    "batch_compare_and_set": ({},),
    "batch_increment": ({},),
}
_ENTRIES = {"ttl": -1, "write": "zz", "timeout": -1}
_CHANGES = {"ttl": -1, "timeout": -1}
#: Arguments of these calls that are not allowed.
WRONG: dict[str, dict[str, Any]] = {
    "batch_put": _ENTRIES,
    "batch_delete": {"write": "zz", "timeout": -1},
    "batch_add": _CHANGES,
    "batch_compare_and_set": _CHANGES,
    "batch_increment": {**_CHANGES, "initial": "x", "at_most": 2**70},
}


@pytest.mark.parametrize("method", EMPTY_BATCHES)
def test_empty_batch_checks_its_arguments(client: Any, index: str, method: str) -> None:
    registers = f"@{index}"
    assert getattr(client, method)(registers, *EMPTY_BATCHES[method]).stored == 0
    for name in ("", 5, "@"):
        with pytest.raises(LimitError, match="index name"):
            getattr(client, method)(name, *EMPTY_BATCHES[method])
    for option, wrong in WRONG[method].items():
        for target, first in ((client, (registers,)), (client.index(registers), ())):
            with pytest.raises(UsageError, match=f"{option.replace('write', 'level')} .*{wrong}"):
                getattr(target, method)(*first, *EMPTY_BATCHES[method], **{option: wrong})


@pytest.mark.parametrize("prefix", ["", "@"])
def test_empty_batch_fails_when_the_client_is_closed(client: Any, index: str, prefix: str) -> None:
    name = f"{prefix}{index}"
    client.put(name, "key", 1)
    client.close()
    methods = EMPTY_BATCHES if prefix else ("batch_put", "batch_delete")
    for method in methods:
        with pytest.raises(ClosedError):
            getattr(client, method)(name, *EMPTY_BATCHES[method])
        with pytest.raises(ClosedError):
            getattr(client.index(name), method)(*EMPTY_BATCHES[method])
    with pytest.raises(ClosedError):
        client.index(name).update({})


@pytest.mark.parametrize("prefix", ["", "@"])
def test_batch_delete_lists_the_keys_that_did_not_exist(
    client: Any, index: str, prefix: str
) -> None:
    name = f"{prefix}{index}"
    client.batch_put(name, {"a": 1, "b": 2}, write="all")
    result = client.batch_delete(name, ["a", "x", "b", 7], write="all")
    assert (result.deleted, sorted(result.missing, key=str)) == (2, [7, "x"])


def test_key_that_occurs_again_in_a_later_part_counts_again(
    client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Calls, "keys_per_round", lambda *_: 2)
    pairs = [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    assert client.batch_put(index, pairs).stored == 3
    assert client.lookup(index, "a") == 3


def test_scan_rejects_page_with_more_keys_than_values(
    client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put(index, "key", 1, write="all")  # so that every replica has it
    monkeypatch.setattr(TypeRegistry, "decode_array", lambda self, packed: [])
    with pytest.raises(ProtocolError, match="1 keys, but 0 values"):
        list(client.items(index))


def test_index_has_the_methods_of_the_client(client: Any, index: str) -> None:
    users = client.index(index)
    users.put("ada", {"born": 1815}, write="all")
    users.batch_put({"alan": {"born": 1912}}, write="all")
    assert users.lookup("ada") == {"born": 1815}
    assert users.batch_lookup(["alan", "bob"]) == {"alan": {"born": 1912}}
    assert users.count() == 2
    assert users.exists("ada")
    assert users.delete("ada")
    assert users.touch("alan", 60)
    assert users.ttl("alan") > 50
    assert users.batch_delete(["alan"]).deleted == 1


def test_registered_types(client: Any, index: str) -> None:
    client.types.register(
        range, code=3, encode=lambda value: b"%d" % value.stop, decode=lambda data: range(int(data))
    )
    client.put(index, "key", [range(5)])
    assert client.lookup(index, "key") == [range(5)]


def test_levels(client: Any, index: str) -> None:
    for level in ("one", "quorum", "all"):
        client.put(index, "key", level, write=level)
        assert client.lookup(index, "key", read="all") == level
        assert client.lookup(index, "key", read="quorum") == level


def test_status_where_and_topology_describe_the_cluster(client: Any, index: str) -> None:
    status = client.status()
    assert [member["answers"] for member in status["members"]] == [True] * 3
    assert len(client.where(index, "key")["replicas"]) == 3
    assert [member.id for member in client.topology().members] == sorted(
        member["id"] for member in status["members"]
    )


def test_admin_request_with_dry_run_changes_nothing(client: Any) -> None:
    leaving = client.topology().members[0].id
    planned = client.admin.remove([leaving], dry_run=True)
    assert planned.epoch == client.topology().epoch + 1
    with pytest.raises(ChangeConflict):
        client.admin.remove(["missing"], dry_run=True)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.put("i", "", 1), LimitError),
        (lambda client: client.put("i", "k" * 401, 1), LimitError),
        (lambda client: client.put("", "key", 1), LimitError),
        (lambda client: client.put("i", 1.5, 1), UnsupportedType),
        (lambda client: client.put("i", "key", object()), UnsupportedType),
        (lambda client: client.put("i", "key", 1, ttl=0), LimitError),
        (lambda client: client.put("i", "key", bytes(9 * 2**20)), LimitError),
        (lambda client: client.put("i", "key", 1, write="some"), UsageError),
        (lambda client: client.lookup("i", True), UnsupportedType),
        (lambda client: client.lookup("i", "key", timeout=-1), LimitError),
        (lambda client: client.lookup("i", "key", read="some"), UsageError),
        (lambda client: client.batch_lookup("i", "key"), LimitError),
        (lambda client: client.batch_delete("i", b"key"), LimitError),
        (lambda client: client.batch_lookup("i", 7), LimitError),
        (lambda client: client.batch_lookup("i", bytearray(b"key")), LimitError),
        (lambda client: client.batch_lookup("i", [["key"]]), UnsupportedType),
        (lambda client: client.batch_lookup("i", [1, True]), UnsupportedType),
        (lambda client: client.batch_delete("i", [["key"]]), UnsupportedType),
        (lambda client: client.batch_delete("i", [1, 1.0]), UnsupportedType),
        (lambda client: client.batch_put("i", [(1, "a"), (True, "b")]), UnsupportedType),
        (lambda client: client.batch_put("i", [(1, "a"), (1.0, "b")]), UnsupportedType),
        (lambda client: client.batch_put("i", 5), UsageError),
        (lambda client: client.batch_put("i", ["ab", "cd"]), UsageError),
        (lambda client: client.batch_put("i", [{"k", "v"}]), UsageError),
        (lambda client: client.batch_put("i", {"k": 1}, ttl=True), LimitError),
        (lambda client: client.batch_put("i", {"k": 1}, on_error="ignore"), UsageError),
        (lambda client: client.batch_delete("i", ["k"], on_error="ignore"), UsageError),
        (lambda client: client.batch_lookup("i", ["k"], on_error="ignore"), UsageError),
        (lambda client: list(client.items("i", on_error="ignore")), UsageError),
        (lambda client: client.put("i", "key", 1, ttl=True), LimitError),
        (lambda client: client.touch("i", "key", True), LimitError),
        (lambda client: client.index("i").put("key", 1, ttl=True), LimitError),
        (lambda client: client.index("i").update({"a": 1, "b": {1: print}}), UnsupportedType),
        (lambda client: client.index("x" * 65), LimitError),
        (lambda client: client.touch("i", "key", -1), LimitError),
    ],
)
def test_call_with_invalid_arguments_raises(client: Any, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(client)


def test_call_without_reachable_peer_raises_no_peers() -> None:
    seed = f"tcp://127.0.0.1:{free_port()}"
    with Client(seed, timeout=0.2) as blocking, pytest.raises(NoPeers):
        blocking.lookup("i", "key")
    with asyncio.Runner() as runner:
        client = driven(runner, seed, timeout=0.2)
        with pytest.raises(NoPeers):
            client.lookup("i", "key")
        with pytest.raises(NoPeers):
            client.batch_put("i", {"key": 1})
        client.close()


@pytest.mark.parametrize("read", ["one", "quorum", "all", None])
def test_scans_take_a_read_level(client: Any, index: str, read: str | None) -> None:
    entries = {f"key-{number}": number for number in range(3000)}
    client.batch_put(index, entries, write="all").raise_for_failures()
    assert dict(client.items(index, read=read)) == entries
    assert sorted(client.keys(index, "key-1", read=read)) == sorted(
        key for key in entries if key.startswith("key-1")
    )
    assert client.count(index, read=read) == len(entries)
    assert client.index(index).count(read=read) == len(entries)


def test_scan_refuses_unknown_level(client: Any, index: str) -> None:
    with pytest.raises(UsageError, match="'most' is not one of one"):
        client.count(index, read="most")


def test_time_to_live_as_timedelta(client: Any, index: str) -> None:
    client.put(index, "put", 1, ttl=dt.timedelta(minutes=1))
    client.batch_put(index, {"batch": 1}, ttl=dt.timedelta(minutes=1))
    client.put(index, "touch", 1)
    client.touch(index, "touch", dt.timedelta(minutes=1))
    assert all(50 < client.ttl(index, key) <= 60 for key in ("put", "batch", "touch"))


def test_batch_lookup_keeps_the_order_of_the_keys(client: Any, index: str) -> None:
    entries = {key: str(key) for number in range(3000) for key in (number, f"k{number}")}
    client.batch_put(index, entries)
    client.batch_delete(index, range(0, 3000, 7))
    keys = random.Random(1).sample(list(entries), len(entries))
    found = client.batch_lookup(index, [*keys[:100], "missing", *keys])
    kept = [key for key in keys if not isinstance(key, int) or key % 7]
    assert list(found) == kept
    assert found == {key: entries[key] for key in kept}


def test_batch_error_has_outcomes_and_names_keys_and_peers(
    client: Any, index: str, peers: Peers
) -> None:
    client.status()
    for name in "bc":
        peers[name].freeze()
    try:
        with pytest.raises(BatchError, match=r"^2 of 2 keys not written: 'a', 'b' ") as put:
            client.batch_put(index, {"a": 1, "b": 2}, timeout=0.4)
        with pytest.raises(BatchError, match=r"^1 of 1 keys not written: 7 ") as delete:
            client.batch_delete(index, [7], timeout=0.4)
        assert not client.batch_put(index, {"a": 1}, timeout=0.4, on_error="return")
        assert not client.batch_delete(index, ["a"], timeout=0.4, on_error="return")
    finally:
        for name in "bc":
            peers[name].thaw()
    assert put.value.outcomes.keys() == {"a", "b"}
    for error in (*put.value.errors.values(), *delete.value.errors.values()):
        assert "b: no answer; c: no answer" in str(error)


def test_error_in_a_later_part_of_a_batch_counts_the_keys_stored_before(
    client: Any, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dstash.client.asyncio._BATCH_KEYS", 100)
    monkeypatch.setattr("dstash.client.blocking.KEYS_PER_BATCH", 100)
    entries = {number: print if number == 150 else number for number in range(200)}
    with pytest.raises(UnsupportedType, match=r"^key 150: .*; 100 keys before these were stored$"):
        client.batch_put(index, entries)
    assert sorted(client.keys(index)) == list(range(100))


def test_value_that_cannot_be_decoded_is_named_and_isolated(client: Any, index: str) -> None:
    def decode(data: bytes) -> range:
        if data == b"3":
            raise ZeroDivisionError("no range")
        return range(int(data))

    def encode(value: range) -> bytes:
        return b"%d" % value.stop

    client.types.register(range, code=9, encode=encode, decode=decode)
    good: dict[Any, Any] = {"a": 1, "b": range(5), 7: [range(2)]}
    client.batch_put(index, {"bad": range(3), **good}, write="all")
    marker = Undecodable(
        "bad", client.types.encode(range(3)), "stored value cannot be decoded: no range"
    )
    text = "^the value of key 'bad' cannot be decoded: .*no range"
    with pytest.raises(UndecodableValue, match=text) as caught:
        client.batch_lookup(index, ["a", "bad", "b", 7])
    assert (caught.value.found, caught.value.undecodable) == (good, {"bad": marker})
    with pytest.raises(UndecodableValue, match=text):
        client.lookup(index, "bad")
    with pytest.raises(UndecodableValue, match=text):
        list(client.items(index))
    found = {**good, "bad": marker}
    assert client.batch_lookup(index, [*good, "bad"], on_error="return") == found
    assert dict(client.items(index, on_error="return")) == found
    users = client.index(index)
    assert dict(users.items(on_error="return")) == found
    assert marker in list(users.values(on_error="return"))
    assert users.batch_lookup(["bad"], on_error="return") == {"bad": marker}
    assert users.count() == 4
