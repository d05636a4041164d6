"""Indexes as mappings: each method does what that of a dict does, in a few calls for many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.client.operations.base import Operation
from tests.harness.asynchronous import Driven
from tests.harness.waiting import PATIENCE, wait_until

ENTRIES: dict[Any, Any] = {f"k{number}": number for number in range(2500)}
ENTRIES |= {b"k1": "bytes", 1: "int", "list": [1]}


class CountingClient(Client):
    """Counts the operations that it runs."""

    operations = 0

    def _run(self, operation: Operation) -> Any:
        self.operations += 1
        return super()._run(operation)


class AsyncCountingClient(AsyncClient):
    """Counts the operations that it runs, except coalesced ones."""

    operations = 0

    async def _run(self, operation: Operation) -> Any:
        self.operations += 1
        return await super()._run(operation)


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, seeds: list[str]) -> Iterator[Any]:
    """A client of either kind."""
    if request.param == "blocking":
        with CountingClient(*seeds, timeout=20) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        made = Driven(runner, AsyncCountingClient(*seeds, timeout=20))
        yield made
        made.close()


@pytest.fixture
def counted(seeds: list[str]) -> Iterator[CountingClient]:
    """A blocking client that counts its operations."""
    with CountingClient(*seeds, timeout=20) as client:
        yield client


def test_update_iterate_and_clear_take_few_operations(client: Any, index: str) -> None:
    users = client.index(index)
    users.update(ENTRIES)
    assert client.operations == 1
    assert dict(users.items()) == ENTRIES
    assert set(users.keys()) == ENTRIES.keys()
    assert sorted(map(str, users.values())) == sorted(map(str, ENTRIES.values()))
    assert dict(users.items("k24")) == {k: v for k, v in ENTRIES.items() if "k24" in str(k)}
    assert set(users.keys(b"k")) == {b"k1"}
    assert sorted(users.values("k249")) == sorted(ENTRIES[k] for k in users.keys("k249"))
    assert client.operations < 100
    users.clear()
    assert users.count() == 0
    assert list(users.keys()) == []
    assert client.operations < 150


def test_update_takes_what_that_of_a_dict_takes(client: Any, index: str) -> None:
    class Source:
        def keys(self) -> list[Any]:
            return ["x", 2]

        def __getitem__(self, key: Any) -> str:
            return f"source {key}"

    users = client.index(index)
    users.update({"a": 1}, b=2, other=3)
    users.update([("c", 3), (4, 4)])
    users.update(Source())
    users.update()
    users.update(e=5)
    expected: dict[Any, Any] = {"a": 1, "b": 2, "other": 3, "c": 3, 4: 4, "e": 5}
    expected |= {"x": "source x", 2: "source 2"}
    assert dict(users.items()) == expected


def test_get_setdefault_and_pop(client: Any, index: str) -> None:
    users = client.index(index)
    assert users.get("a") is None
    assert users.get("a", 5) == 5
    assert users.setdefault("a", 1) == 1
    assert users.setdefault("a", 2) == 1
    assert users.setdefault("none") is None
    assert users.exists("none")
    assert users.setdefault("none", 3) is None
    assert users.get("a", read="all") == 1
    assert users.pop("a") == 1
    assert users.pop("a", "gone") == "gone"
    assert users.pop("none", "gone") is None
    with pytest.raises(KeyError, match="'a'"):
        users.pop("a")


def test_popitem_returns_each_key_once_then_raises(client: Any, index: str) -> None:
    users = client.index(index)
    entries = {"a": 1, "b": None, 7: "c", b"d": [1]}
    users.update(entries)
    users.put("brief", 1, ttl=0.001)
    wait_until(lambda: users.get("brief") is None, PATIENCE, "it has expired")
    assert dict([users.popitem() for _ in entries]) == entries
    with pytest.raises(KeyError, match="is empty"):
        users.popitem()


def test_items_do_not_fail_for_keys_that_expire_during_iteration(client: Any, index: str) -> None:
    users = client.index(index)
    users.update({number: number for number in range(50)})
    users.batch_put({number: number for number in range(50, 100)}, ttl=0.5)
    found = iter(users.items())
    pairs = [next(found)]
    wait_until(lambda: not users.batch_lookup(range(50, 100)), PATIENCE, "they have expired")
    pairs += found
    assert all(key == value for key, value in pairs)
    assert len(set(pairs)) == len(pairs)
    assert set(range(50)) <= dict(pairs).keys() <= set(range(100))


def test_length_and_iteration_see_own_writes(client: Any, index: str) -> None:
    users = client.index(index)
    for number in range(5):
        users.put(number, number)
        assert users.count() == number + 1
        assert sorted(users.keys()) == list(range(number + 1))
    for number in range(5):
        users.delete(number)
        assert users.count() == 4 - number
        assert sorted(users.values()) == list(range(number + 1, 5))


def test_operators_of_a_mapping(counted: CountingClient, index: str) -> None:
    users = counted.index(index)
    assert not users
    users["a"] = 1
    assert users
    assert users["a"] == 1
    assert "a" in users
    assert "b" not in users
    for other in (True, 1.0, None, ("a",)):
        assert other not in users
    assert len(users) == 1
    assert list(users) == ["a"]
    del users["a"]
    with pytest.raises(KeyError):
        del users["a"]
    with pytest.raises(KeyError):
        users["a"]


def test_equality_compares_keys_and_values(counted: CountingClient, index: str) -> None:
    users, others = counted.index(index), counted.index(f"{index[:50]}-other")
    users.update(ENTRIES)
    before = counted.operations
    assert users == ENTRIES
    assert users == ENTRIES
    assert users != {**ENTRIES, "a": 1}
    assert users != others
    assert users != "text"
    others.update(users)
    assert users == others
    assert users == counted.index(index)
    assert counted.operations - before < 200


def test_views_have_the_operations_of_dict_views(counted: CountingClient, index: str) -> None:
    users = counted.index(index)
    entries = {f"k{number}": number for number in range(300)}
    users.update(entries)
    keys, items, values = users.keys(), users.items(), users.values()
    before = counted.operations
    few = {"k1", "k2", "other"}
    assert keys & few == few & keys == entries.keys() & few
    assert keys | few == few | keys == entries.keys() | few
    assert keys - few == entries.keys() - few
    assert few - keys == {"other"}
    assert keys ^ few == few ^ keys == entries.keys() ^ few
    assert keys == entries.keys()
    assert keys != few
    assert not keys <= few
    assert {"k1"} < keys
    assert keys >= {"k1"}
    assert keys > {"k1"}
    assert keys <= entries.keys()
    assert not keys < entries.keys()
    assert keys.isdisjoint({"other"})
    assert not keys.isdisjoint(few)
    assert items == entries.items()
    assert items & {("k1", 1), ("k2", 1)} == {("k1", 1)}
    assert counted.operations - before < 300
    assert "k1" in keys
    assert "other" not in keys
    assert ("k1", 1) in items
    assert ("k1", 2) not in items
    assert ("other", 1) not in items
    assert "k1" not in items
    assert 299 in values
    assert 300 not in values
    assert len(keys) == len(items) == len(values) == 300
    assert len(users.keys("k29")) == len(users.items("k29")) == 11
    assert "k1" not in users.keys("k29")
    assert "k291" in users.keys("k29")
    assert repr(keys) == f"IndexKeys(<dstash index {index!r}>)"


def test_items_with_values_that_are_not_hashable_can_be_compared(
    counted: CountingClient, index: str
) -> None:
    users = counted.index(index)
    users.update({"a": [1], "b": {"c": 2}})
    assert users.items() == {"a": [1], "b": {"c": 2}}.items()
    assert users.items() != {"a": [1], "b": {"c": 3}}.items()
    assert ("a", [1]) in users.items()


def test_clear_reads_at_quorum_though_the_client_reads_one(seeds: list[str], index: str) -> None:
    with Client(*seeds, timeout=20, read="one") as client:
        users = client.index(index)
        for number in range(4):
            users.put(number, number)
            users.clear()
            assert users.count(read="all") == 0
