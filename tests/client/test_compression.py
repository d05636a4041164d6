"""Compressed values through both clients and real peers: every operation reads and writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from dstash import AsyncClient, Client
from dstash.errors import ConfigError, Conflict, UsageError
from tests.harness.asynchronous import driven

TEXT = "what repeats itself " * 100
VALUES = {"text": TEXT, "list": [TEXT, (1, 2)], "map": {"k": TEXT}, "number": 7, "none": None}


@pytest.fixture(params=["blocking", "asyncio"])
def writer(request: pytest.FixtureRequest, seeds: list[str]) -> Iterator[Any]:
    """A client of either kind that compresses."""
    settings: dict[str, Any] = {"timeout": 20, "write": "all", "compression": "zstd"}
    if request.param == "blocking":
        with Client(*seeds, **settings) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        made = driven(runner, *seeds, **settings)
        yield made
        made.close()


def stored_bytes(client: Client, index: str) -> int:
    """Return the bytes of the records of an index."""
    return next(size.bytes for size in client.indexes() if size.name == index)


def test_every_client_reads_what_one_has_compressed(
    writer: Any, blocking: Client, index: str
) -> None:
    for key, value in VALUES.items():
        writer.put(index, key, value)
    plain = {f"plain {key}": value for key, value in VALUES.items()}
    blocking.batch_put(index, plain, write="all")
    expected = VALUES | plain
    for client in (writer, blocking):
        assert {key: client.lookup(index, key) for key in expected} == expected
        assert client.batch_lookup(index, list(expected)) == expected
        assert dict(client.items(index)) == expected
        assert client.exists(index, "text")


def test_batch_is_stored_compressed(writer: Any, blocking: Client, index: str) -> None:
    many = {f"k{number}": f"{number} {TEXT}" for number in range(200)}
    writer.batch_put(index, many)
    blocking.batch_put(f"{index}-plain", many, write="all")
    assert blocking.batch_lookup(index, list(many)) == many
    assert dict(blocking.items(index)) == many
    assert 10 * stored_bytes(blocking, index) < stored_bytes(blocking, f"{index}-plain")


def test_touch_keeps_compressed_value(writer: Any, blocking: Client, index: str) -> None:
    writer.put(index, "k", TEXT)
    before = stored_bytes(blocking, index)
    blocking.touch(index, "k", 100, write="all")
    assert (blocking.lookup(index, "k"), stored_bytes(blocking, index)) == (TEXT, before)


def test_registers_hold_compressed_values(writer: Any, blocking: Client, index: str) -> None:
    name = f"@{index}"
    assert writer.add(name, "k", TEXT)
    entry = blocking.lookup_entry(name, "k")
    assert entry.value == TEXT == blocking.lookup(name, "k")
    version = writer.compare_and_set(name, "k", [TEXT], entry.version)
    assert blocking.get_and_set(name, "k", TEXT) == [TEXT]
    with pytest.raises(Conflict):
        writer.compare_and_set(name, "k", 0, version)
    assert writer.update(name, "k", lambda text: text + TEXT) == 2 * TEXT
    with pytest.raises(UsageError, match="not an integer"):
        writer.increment(name, "k")
    assert writer.pop(name, "k") == 2 * TEXT
    assert [writer.increment(name, "n", 5), blocking.increment(name, "n")] == [5, 6]


def test_coalesced_calls_share_compressed_values(seeds: list[str], index: str) -> None:
    async def run() -> None:
        async with AsyncClient(*seeds, timeout=20, compression="zstd") as client:
            puts = (client.put(index, f"k{number}", [number, TEXT]) for number in range(50))
            await asyncio.gather(*puts)
            keys = [f"k{number // 2}" for number in range(100)]
            found = await asyncio.gather(*(client.lookup(index, key) for key in keys))
            assert found == [[number // 2, TEXT] for number in range(100)]
            assert found[0] is not found[1]

    asyncio.run(run())


@pytest.mark.parametrize("given", ["gzip", True, 1, ""])
def test_other_compression_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"compression is .*; allowed is none \| zstd"):
        Client("127.0.0.1:1", compression=given)
