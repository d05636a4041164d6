"""Registers of real peers, by both clients."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dstash import AsyncClient, BatchResult, Client, Conflict, LockLost, UsageError
from dstash.errors import BatchError, LimitError
from tests.client.test_identity import in_child
from tests.harness.asynchronous import driven
from tests.harness.linearizability import Call, is_linearizable


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


@pytest.fixture
def registers(index: str) -> str:
    """The name of an index with registers that no other test uses."""
    return f"@{index}"


def test_single_operations(client: Any, registers: str) -> None:
    assert client.add(registers, "k", {"a": {1}}) is True
    assert client.add(registers, "k", 2) is False
    entry = client.lookup_entry(registers, "k")
    assert (entry.value, entry.ttl) == ({"a": {1}}, None)
    after = client.compare_and_set(registers, "k", None, entry.version, ttl=60)
    with pytest.raises(Conflict) as caught:
        client.compare_and_set(registers, "k", 3, entry.version)
    assert caught.value.details["version"] == after
    assert client.get_and_set(registers, "k", 7) is None
    assert 50 < client.ttl(registers, "k") <= 60
    assert client.increment(registers, "k", 3) == 10
    assert client.decrement(registers, "k", 10, at_least=0) == 0
    with pytest.raises(Conflict, match="out of its bounds"):
        client.decrement(registers, "k", at_least=0)
    assert client.touch(registers, "k", None) is True
    assert client.ttl(registers, "k") is None
    assert client.update(registers, "k", lambda value: value + 5) == 5
    assert client.pop(registers, "k") == 5
    assert client.pop(registers, "k", "default") == "default"
    assert client.lookup_entry(registers, "k") is None
    assert client.lookup(registers, "k", "default") == "default"
    assert client.exists(registers, "k") is False
    with pytest.raises(KeyError):
        client.pop(registers, "k")


def test_methods_of_plain_indexes_work_on_registers(client: Any, registers: str) -> None:
    client.put(registers, "k", 1, ttl=60)
    client.put(registers, "k", 2)
    assert (client.lookup(registers, "k"), client.ttl(registers, "k")) == (2, None)
    version = client.lookup_entry(registers, "k").version
    with pytest.raises(Conflict):
        client.delete(registers, "k", version=version + 1)
    assert client.delete(registers, "k", version=version) is True
    assert client.delete(registers, "k") is False
    entries = {f"key-{number}": number for number in range(600)}
    assert client.batch_put(registers, entries).stored == 600
    assert client.batch_lookup(registers, [*entries, "missing"]) == entries
    assert client.lookup(registers, "key-7", read="one") in (7, None)
    assert client.ttl(registers, "key-2", read="one") is None
    assert client.batch_lookup(registers, ["key-2", "key-3", "key-2"]) == {"key-2": 2, "key-3": 3}
    deleted = client.batch_delete(registers, ["key-1", "missing"])
    assert (type(deleted), deleted.stored, deleted.deleted) == (BatchResult, 2, 1)
    assert client.count(registers) <= 600


def test_batches(client: Any, registers: str) -> None:
    client.put(registers, "b", 0)
    result = client.batch_add(registers, {"a": 1, "b": 2})
    assert (set(result.versions), set(result.unchanged)) == ({"a"}, {"b"})
    version = result.versions["a"]
    with pytest.raises(BatchError, match="key 'b' of index"):
        client.batch_compare_and_set(registers, {"a": (5, version), "b": (5, version + 1)})
    result = client.batch_increment(registers, {"a": 1, "b": 2, "c": 3})
    assert result.values == {"a": 6, "b": 2, "c": 3}


def test_sign_alone_is_no_index(client: Any) -> None:
    text = "index name is '@' alone; at least one character follows the @"
    calls: list[Any] = [
        lambda: client.lookup("@", "k"),
        lambda: client.exists("@", "k"),
        lambda: client.batch_lookup("@", ["k"]),
        lambda: client.put("@", "k", 1),
        lambda: client.delete("@", "k"),
        lambda: client.lookup("@", "k", read="one"),
    ]
    for call in calls:
        with pytest.raises(LimitError) as caught:
            call()
        assert str(caught.value) == text


def test_update_with_a_low_fencing_token_is_refused_at_once(client: Any, registers: str) -> None:
    client.put(registers, "k", 1, fence=7)
    began = time.monotonic()
    with pytest.raises(Conflict, match="a fencing token above 6"):
        client.update(registers, "k", lambda value: value, fence=6)
    assert time.monotonic() - began < 5  # the timeout is 20 s


def test_index_is_atomic(client: Any, registers: str) -> None:
    users = client.index(registers)
    assert users.setdefault("ada", [1]) == [1]
    assert users.setdefault("ada", [2]) == [1]
    assert users.add("ada", 1) is False
    version = users.lookup_entry("ada").version
    assert users.compare_and_set("ada", "new", version) > version
    assert users.get_and_set("ada", 4) == "new"
    assert (users.increment("ada", 2), users.decrement("ada")) == (6, 5)
    assert users.pop("ada") == 5
    assert users.pop("ada", None) is None
    assert set(users.batch_add({"a": 1, "b": 2}).versions) == {"a", "b"}
    assert users.batch_increment({"a": 1, "b": 1}, at_most=9).values == {"a": 2, "b": 3}
    version = users.lookup_entry("a").version
    assert users.batch_compare_and_set({"a": (5, version)}).ok


def test_plain_index_refuses_operations_of_registers(client: Any, index: str) -> None:
    text = f"needs an index whose name begins with @, such as '@{index}'"
    for call in (
        lambda: client.add(index, "k", 1),
        lambda: client.increment(index, "k"),
        lambda: client.pop(index, "k"),
        lambda: client.put(index, "k", 1, fence=5),
        lambda: client.touch(index, "k", 5, fence=5),
        lambda: client.delete(index, "k", version=5),
        lambda: client.touch(index, "k", 5, version=5),
        lambda: client.lock("name", index=index),
        lambda: client.index(index).add("k", 1),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert text in str(caught.value)


def test_history_of_concurrent_calls_is_linearizable(seeds: list[str], registers: str) -> None:
    calls: list[Call] = []
    begin = time.monotonic()

    def work(number: int) -> None:
        chance = random.Random(number)
        with Client(*seeds, timeout=20) as client:
            for step in range(12):
                kind = chance.choice(["read", "put", "add", "swap", "increment", "delete"])
                value = number * 1000 + step
                began = time.monotonic() - begin
                answer: Any = None
                if kind == "read":
                    answer, value = client.lookup(registers, "k"), 0
                elif kind == "put":
                    client.put(registers, "k", value)
                elif kind == "add":
                    answer = client.add(registers, "k", value)
                elif kind == "swap":
                    answer = client.get_and_set(registers, "k", value)
                elif kind == "increment":
                    answer, value = client.increment(registers, "k"), 1
                else:
                    answer, value = client.delete(registers, "k"), 0
                calls.append(Call(began, time.monotonic() - begin, kind, value, answer))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))
    assert len(calls) == 48
    assert is_linearizable(calls)


def test_increments_of_many_callers_are_counted_once(seeds: list[str], registers: str) -> None:
    async def main() -> list[int]:
        async with AsyncClient(*seeds, timeout=20) as client:
            return await asyncio.gather(*(client.increment(registers, "n") for _ in range(100)))

    assert sorted(asyncio.run(main())) == list(range(1, 101))


class TestLocks:
    def test_lock_is_held_by_one_client_and_renewed(self, client: Any, registers: str) -> None:
        if not isinstance(client, Client):
            return
        with client.lock("job", ttl=1.5, wait=0, index=registers) as lock:
            with pytest.raises(Conflict, match="lock 'job' is held by"):
                client.lock("job", ttl=1, wait=0, index=registers).acquire()
            time.sleep(1.7)  # longer than the time to live
            lock.check()
            assert lock.is_held
            token = lock.token
        with client.lock("job", ttl=1, wait=0, index=registers) as lock:
            assert lock.token > token

    def test_lost_lock_is_reported_at_the_end(self, blocking: Client, registers: str) -> None:
        def work() -> None:
            with blocking.lock("job", wait=0, index=registers) as lock:
                blocking.delete(registers, "job")
                lock.check()  # it does not know yet

        with pytest.raises(LockLost, match="it expired, or was deleted"):
            work()

    def test_error_of_the_block_is_not_hidden(self, blocking: Client, registers: str) -> None:
        def work() -> None:
            with blocking.lock("job", index=registers):
                blocking.delete(registers, "job")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            work()

    def test_asyncio_lock_is_renewed(self, seeds: list[str], registers: str) -> None:
        async def main() -> None:
            async with AsyncClient(*seeds, timeout=20) as client:
                async with client.lock("job", ttl=1.5, wait=0, index=registers) as lock:
                    await asyncio.sleep(1.7)
                    lock.check()
                    with pytest.raises(Conflict):
                        await client.lock("job", wait=0, index=registers).acquire()
                async with client.semaphore("pool", 2, wait=0, index=registers) as place:
                    assert place.is_held
                limiter = client.limiter("mail", 1, per=3600, index=registers)
                assert await limiter.acquire() is True
                assert await limiter.acquire() is False

        asyncio.run(main())

    def test_child_of_a_fork_has_its_own_requests(self, blocking: Client, registers: str) -> None:
        blocking.increment(registers, "n")
        assert in_child(lambda: blocking.increment(registers, "n")) == "2"
        assert blocking.increment(registers, "n") == 3
