"""Reads of values that cannot be decoded: they are named, and do not affect other keys."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from dstash.client.operations.batch_lookup import BatchLookup
from dstash.client.operations.drafts import Query
from dstash.client.operations.walks import walk_for
from dstash.client.operations.writes import PutOperation
from dstash.errors import UndecodableValue
from dstash.types import Level, OnError
from dstash.wire.messages import Scan
from dstash.wire.values import Undecodable
from tests.harness.joined import TYPES, Joined

BAD = msgpack.packb(msgpack.ExtType(7, b"?"))
REASON = "stored value has type code 7, which is not registered on this client"
GOOD = {f"k{number}": number for number in range(50)}
LEVELS = ["one", "quorum", "all"]


@pytest.fixture(params=["equal replicas", "differing replicas"])
def joined(request: pytest.FixtureRequest) -> Joined:
    """A cluster with two values that cannot be decoded; perhaps one replica lacks all records."""
    made = Joined()
    made.put(GOOD, level="all")
    items: list[Any] = [(key, key.encode(), BAD) for key in ("bad1", "bad2")]
    made.run(PutOperation(made.session, made.now + 5000, "i", Level.ALL, items, None))
    if request.param == "differing replicas":
        made.forget("a", *GOOD, "bad1", "bad2")
        made.forget("b", "k1", "bad1")
    return made


def lookup(joined: Joined, level: str, on_error: OnError) -> dict[Any, Any]:
    keys = ["bad2", *GOOD, "bad1", "missing"]
    operation = BatchLookup(
        joined.session,
        joined.now + 5000,
        "i",
        keys,
        Level(level),
        TYPES.decode_values,
        on_error=on_error,
    )
    found: dict[Any, Any] = joined.run(operation)
    return found


def scan(joined: Joined, level: str, on_error: OnError) -> list[tuple[Any, Any]]:
    walk = walk_for(Scan, Query("i", b"", Level(level), TYPES.decode_values, on_error))
    found: list[Any] = []
    while not walk.done:
        found += walk.take(joined.run(walk.operation(joined.session, joined.now + 5000))) or []
    return found


@pytest.mark.parametrize("level", ["quorum", "all"])
def test_lookup_returns_marker_and_keeps_order(joined: Joined, level: str) -> None:
    found = lookup(joined, level, OnError.RETURN)
    bad1, bad2 = Undecodable("bad1", BAD, REASON), Undecodable("bad2", BAD, REASON)
    assert list(found.items()) == list({"bad2": bad2, **GOOD, "bad1": bad1}.items())


@pytest.mark.parametrize("level", ["quorum", "all"])
def test_lookup_raises_error_with_keys_and_other_values(joined: Joined, level: str) -> None:
    with pytest.raises(UndecodableValue, match=r"^the value of key 'bad\d' cannot .*1 more") as it:
        lookup(joined, level, OnError.RAISE)
    assert it.value.found == GOOD
    assert sorted(it.value.undecodable) == ["bad1", "bad2"]
    assert not it.value.retryable


@pytest.mark.parametrize("level", ["quorum", "all"])
def test_scan_returns_marker(joined: Joined, level: str) -> None:
    found = scan(joined, level, OnError.RETURN)
    bad = {key: Undecodable(key, BAD, REASON) for key in ("bad1", "bad2")}
    assert len(found) == len(GOOD) + 2
    assert dict(found) == GOOD | bad


@pytest.mark.parametrize("level", ["quorum", "all"])
def test_scan_raises_error_with_a_key(joined: Joined, level: str) -> None:
    with pytest.raises(UndecodableValue, match=r"^the value of key 'bad\d' cannot be decoded"):
        scan(joined, level, OnError.RAISE)
