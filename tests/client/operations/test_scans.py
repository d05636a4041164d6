"""Scans at a level: they deliver what a look-up of each key at that level would find."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from dstash.client.operations import key_lists, page_reads
from dstash.client.operations.drafts import Query
from dstash.client.operations.reads import LookupOperation
from dstash.client.operations.walks import walk_for
from dstash.client.operations.writes import PutOperation
from dstash.cluster.topology.topology import Topology
from dstash.errors import CorruptRecord, ProtocolError, TimedOut, Unavailable
from dstash.limits import PARTITIONS
from dstash.peer import scan_pages
from dstash.store.record import keyspace
from dstash.store.sealing import locate
from dstash.types import Level
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Count, Page, Scan, ScanKeys
from tests.harness.joined import TYPES, Joined

REQUESTS = [Scan, ScanKeys, Count]
KEYS = {f"k{number}": number for number in range(300)}


@pytest.fixture
def joined() -> Joined:
    return Joined()


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pages small, and answers of peers even smaller."""
    monkeypatch.setattr(page_reads, "PAGE_KEYS", 7)
    monkeypatch.setattr(key_lists, "PAGE_KEYS", 5)
    monkeypatch.setattr(scan_pages, "VISITS", 600)


def seen(joined: Joined, request: Any, level: str = "quorum", **more: Any) -> Any:
    """Return what a scan delivers, in comparable form; each key must occur once."""
    found = joined.walk(request, level, **more)
    if request is Count:
        return sum(found)
    assert len(set(found)) == len(found)
    return set(found)


def wanted(request: Any, entries: dict[str, Any]) -> Any:
    """Return what a scan of these entries must deliver."""
    return {Scan: set(entries.items()), ScanKeys: set(entries), Count: len(entries)}[request]


def kinds(joined: Joined) -> Counter[str]:
    return Counter(type(envelope.message).__name__ for _, envelope in joined.asked)


@pytest.mark.parametrize("level", ["quorum", "all"])
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("missed", "abc")
class TestMissedWrites:
    def test_scan_delivers_missed_puts(self, request_: Any, level: str, missed: str) -> None:
        joined = Joined()
        joined.put(KEYS, "all")
        joined.silent = {missed}
        joined.put(dict.fromkeys(KEYS, "new") | {"fresh": 1})
        joined.silent = set()
        entries = dict.fromkeys(KEYS, "new") | {"fresh": 1}
        assert seen(joined, request_, level) == wanted(request_, entries)

    def test_scan_omits_missed_deletes(self, request_: Any, level: str, missed: str) -> None:
        joined = Joined()
        joined.put(KEYS, "all")
        joined.silent = {missed}
        joined.delete(*[f"k{number}" for number in range(100)])
        joined.silent = set()
        entries = {key: value for key, value in KEYS.items() if value >= 100}
        assert seen(joined, request_, level) == wanted(request_, entries)


@pytest.mark.parametrize("request_", REQUESTS)
def test_scan_at_level_one_may_omit_missed_puts(request_: Any) -> None:
    """If level one found all puts, these tests would prove nothing."""
    seen_by_missed = []
    for missed in "abc":
        joined = Joined()
        joined.silent = {missed}
        joined.put(KEYS)
        joined.silent = set()
        seen_by_missed.append(seen(joined, request_, "one"))
    assert seen_by_missed != [wanted(request_, KEYS)] * 3


@pytest.mark.parametrize("request_", REQUESTS)
def test_scan_of_equal_replicas_requests_one_digest_per_page(joined: Joined, request_: Any) -> None:
    joined.put(KEYS, "all")
    joined.asked.clear()
    assert seen(joined, request_) == wanted(request_, KEYS)
    assert set(kinds(joined)) <= {request_.__name__, "Count"}
    asked = [envelope.message for _, envelope in joined.asked]
    digests = [message for message in asked if isinstance(message, Count) and message.moment]
    assert len(digests) == len(asked) - len(digests) == 6, "six pairs of three replicas"


def test_scan_at_level_one_requests_no_digest(joined: Joined) -> None:
    joined.put(KEYS, "all")
    joined.asked.clear()
    assert joined.scan() == KEYS
    assert [envelope.message.digest for _, envelope in joined.asked] == [False] * 3


def test_next_page_is_requested_with_digest_of_previous_page(
    joined: Joined, small_pages: None
) -> None:
    joined.put(KEYS, "all")
    joined.asked.clear()
    seen(joined, Scan)
    order = [type(envelope.message).__name__ for _, envelope in joined.asked]
    assert order[:4] == ["Scan", "Count", "Scan", "Count"], "the first page may be all there is"
    pages = order.count("Scan")
    assert pages > 20
    together = sum(pair == ("Count", "Scan") for pair in itertools.pairwise(order[3:]))
    assert together >= pages - 8


def test_scan_looks_up_only_differing_partitions(joined: Joined) -> None:
    joined.put(KEYS, "all")
    joined.forget("a", "k7")
    joined.forget("b", "k7")
    joined.asked.clear()
    assert seen(joined, Scan, "all") == wanted(Scan, KEYS)
    listed = [
        envelope.message for _, envelope in joined.asked if isinstance(envelope.message, ScanKeys)
    ]
    assert [len(message.partitions) for message in listed] == [2, 2, 2]


@pytest.mark.parametrize("level", ["quorum", "all"])
@pytest.mark.parametrize("seed", range(12))
def test_scan_agrees_with_lookups(level: str, seed: int, small_pages: None) -> None:
    rng = random.Random(seed)
    joined = Joined()
    keys = [f"{rng.choice('xy')}{number}" for number in range(120)]
    for number in range(25):
        joined.silent = set(rng.sample("abc", rng.choice((0, 1, 1))))
        some = rng.sample(keys, rng.randint(1, 30))
        if rng.random() < 0.7:
            joined.put(dict.fromkeys(some, number))
        else:
            joined.delete(*some)
        joined.now += 1
    joined.silent = set()
    for _ in range(rng.choice((0, 0, 3))):
        peer, key = rng.choice("abc"), rng.choice(keys)
        if joined.record(peer, key) is not None:
            joined.corruption(peer, key)
    twin = Joined()
    for name, store in twin.stores.items():
        store.records = dict(joined.stores[name].records)
    twin.now = joined.now
    entries = twin.lookup(*keys, level=level)
    assert entries
    order = random.Random(seed).sample(REQUESTS, 3)
    for request in order:
        assert seen(joined, request, level) == wanted(request, entries)
    of_x = {key: value for key, value in entries.items() if key.startswith("x")}
    assert seen(joined, Scan, level, prefix=b"x") == wanted(Scan, of_x)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("empty", "abc")
def test_scan_is_complete_when_a_replica_is_empty(
    request_: Any, empty: str, small_pages: None
) -> None:
    joined = Joined()
    joined.put(KEYS, "all")
    joined.stores[empty].records.clear()
    assert seen(joined, request_) == wanted(request_, KEYS)


def test_differing_large_values_are_looked_up_in_small_batches() -> None:
    joined = Joined()
    values = {f"k{number}": bytes([number]) * 300_000 for number in range(60)}
    joined.silent = {"c"}
    joined.put(values)
    joined.silent = set()
    walk = walk_for(Scan, Query("i", b"", Level.QUORUM, TYPES.decode_values))
    found: dict[Any, Any] = {}
    sizes: list[int] = []
    while not walk.done:
        operation = walk.operation(joined.session, joined.now + 5000)
        part = walk.take(joined.run(operation)) or []
        found.update(part)
        if isinstance(operation, LookupOperation):
            sizes.append(len(part))
    assert found == values
    assert max(sizes[:1]) <= 16
    assert max(sizes[1:]) == 6, "as many as fit into the bytes of a page"


class TestFailures:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_unconfirmed_page_is_not_delivered(self, joined: Joined, request_: Any) -> None:
        joined.put(KEYS, "all")

        def lose_digests(peer: str, envelope: Envelope) -> Envelope | None:
            message = envelope.message
            return None if isinstance(message, Count) and message.moment else envelope

        joined.tamper = lose_digests
        with pytest.raises((TimedOut, Unavailable)):
            joined.walk(request_, "quorum")

    @pytest.mark.parametrize("level", ["quorum", "all"])
    def test_scan_fails_after_timeout_with_too_few_replicas(self, level: str) -> None:
        joined = Joined()
        joined.put(KEYS, "all")
        joined.down = {"b", "c"} if level == "quorum" else {"c"}
        began = joined.now
        with pytest.raises(Unavailable):
            joined.walk(Scan, level, timeout=2000)
        assert joined.now == began + 2000

    def test_scan_fails_with_too_few_synced_replicas(self, joined: Joined) -> None:
        joined.put(KEYS, "all")
        members = tuple(
            replace(member, synced=member.id == "a") for member in joined.topology.members
        )
        joined.session.install(_next(joined.topology, members=members).encode(), list("abc"))
        with pytest.raises(Unavailable):
            joined.walk(Scan, "quorum")

    @pytest.mark.parametrize("how", ["down", "silent"])
    @pytest.mark.parametrize("when", [Scan, Count])
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_scan_uses_another_replica_when_one_fails(
        self, joined: Joined, request_: Any, when: Any, how: str, small_pages: None
    ) -> None:
        joined.put(KEYS, "all")
        left = [12]

        def go_away(peer: str, envelope: Envelope) -> Envelope | None:
            message = envelope.message
            is_digest = isinstance(message, Count) and message.moment > 0
            if is_digest is (when is Count):
                left[0] -= 1
            if left[0] == 0:
                left[0] = -1_000_000
                getattr(joined, how).add(peer)
                return None
            return envelope

        joined.tamper = go_away
        assert seen(joined, request_) == wanted(request_, KEYS)
        assert joined.down or joined.silent

    def test_failed_read_ahead_page_is_requested_again(
        self, joined: Joined, small_pages: None
    ) -> None:
        joined.put(KEYS, "all")
        scans = [0]

        def lose_some(peer: str, envelope: Envelope) -> Envelope | None:
            scans[0] += isinstance(envelope.message, Scan)
            return None if isinstance(envelope.message, Scan) and scans[0] % 5 == 4 else envelope

        joined.tamper = lose_some
        assert seen(joined, Scan) == wanted(Scan, KEYS)

    def test_scan_fails_when_too_few_replicas_are_sound(self, joined: Joined) -> None:
        joined.put(KEYS, "all")
        for peer in "ab":
            joined.alter(peer, "k7", lambda record: record[:30])
        with pytest.raises(CorruptRecord, match="'k7'"):
            joined.walk(Scan, "quorum")


class TestCorruptRecords:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_corrupt_record_is_read_from_other_replicas(
        self, joined: Joined, request_: Any
    ) -> None:
        joined.put(KEYS, "all")
        for peer, key in zip("abc", KEYS, strict=False):
            joined.corruption(peer, key)
            joined.alter(peer, f"k{200 + ord(peer)}", lambda record: record[:30])
        assert seen(joined, request_) == wanted(request_, KEYS)

    @pytest.mark.parametrize("request_", REQUESTS)
    @pytest.mark.parametrize("corrupt", "abc")
    @pytest.mark.parametrize("missed", "abc")
    def test_corrupt_record_does_not_vote_for_missing_key(
        self, request_: Any, corrupt: str, missed: str
    ) -> None:
        if corrupt == missed:
            return
        joined = Joined()
        joined.put(KEYS, "all")
        joined.forget(missed, "k7")
        joined.alter(corrupt, "k7", lambda record: record[:10])
        assert seen(joined, request_) == wanted(request_, KEYS)

    @pytest.mark.parametrize("request_", REQUESTS)
    def test_corrupt_tombstone_that_looks_live_is_not_delivered(
        self, joined: Joined, request_: Any
    ) -> None:
        joined.put(KEYS, "all")
        joined.delete("k7", level="all")
        entries = {key: value for key, value in KEYS.items() if key != "k7"}
        for peer in "abc":
            whole = joined.record(peer, "k7") or b""
            joined.alter(peer, "k7", lambda record: record[:28] + b"\x00" + record[29:])
            assert seen(joined, request_) == wanted(request_, entries)
            joined.alter(peer, "k7", lambda record, whole=whole: whole)


class TestExpiry:
    def test_page_and_digest_use_same_time_for_expiry(self, joined: Joined) -> None:
        joined.put(KEYS, "all")
        expiry = joined.now + 50
        for peer in "abc":
            joined.expire(peer, "k7", expiry)

        def slow(peer: str, envelope: Envelope) -> Envelope:
            if isinstance(envelope.message, Count):
                joined.now = max(joined.now, expiry + 1)
            return envelope

        joined.tamper = slow
        joined.asked.clear()
        assert len(seen(joined, Scan)) in (299, 300)
        assert set(kinds(joined)) == {"Scan", "Count"}

    def test_old_read_ahead_page_is_dropped(self, joined: Joined, small_pages: None) -> None:
        joined.put(KEYS, "all")
        walk = walk_for(Scan, Query("i", b"", Level.QUORUM, TYPES.decode_values))
        found: list[Any] = []
        joined.asked.clear()
        while not walk.done:
            found += walk.take(joined.run(walk.operation(joined.session, joined.now + 500))) or []
            joined.now += 2000
        assert dict(found) == KEYS
        slow = kinds(joined)["Scan"]
        joined.asked.clear()
        seen(joined, Scan)
        assert slow > kinds(joined)["Scan"]


class TestTopology:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_page_is_read_again_after_epoch_change(
        self, joined: Joined, request_: Any, small_pages: None
    ) -> None:
        joined.put(KEYS, "all")
        left = [10]

        def change(peer: str, envelope: Envelope) -> Envelope:
            message = envelope.message
            if isinstance(message, Count) and message.moment:
                left[0] -= 1
            if left[0] == 0:
                left[0] = -1000
                joined.install(_next(joined.topology))
            return envelope

        joined.tamper = change
        assert seen(joined, request_) == wanted(request_, KEYS)
        assert joined.session.epoch == joined.topology.epoch + 1


class TestPeerOfEarlierVersion:
    """A peer that does not know digests answers as in earlier versions."""

    @pytest.mark.parametrize("request_", REQUESTS)
    @pytest.mark.parametrize("old", ["a", "ab", "abc"])
    def test_peer_without_digests_is_compared_by_lookups(
        self, request_: Any, old: str, small_pages: None
    ) -> None:
        joined = Joined()
        joined.put(KEYS, "all")
        joined.silent = {"b"}
        joined.put({"fresh": 1})
        joined.silent = set()

        def as_before(peer: str, envelope: Envelope) -> Envelope:
            message = envelope.message
            if peer in old and isinstance(message, Scan | ScanKeys):
                return envelope._replace(message=replace(message, digest=False))
            if peer in old and isinstance(message, Count):
                message = replace(message, digest=False, until=b"", moment=0)
                return envelope._replace(message=message)
            return envelope

        joined.tamper = as_before
        entries = KEYS | {"fresh": 1}
        assert seen(joined, request_) == wanted(request_, entries)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digests": b"\0"},
        {"digests": bytes([0xFF, 0xFF, 0, 0, 0, 1]) + bytes(16)},
        {"corrupt": b"\xff\xff"},
        {"done": 4097},
    ],
)
def test_malformed_page_is_refused(joined: Joined, wrong: dict[str, Any]) -> None:
    joined.put(KEYS, "all")

    def spoil(envelope: Envelope) -> Envelope:
        if isinstance(envelope.message, Page):
            return envelope._replace(message=replace(envelope.message, **wrong))
        return envelope

    joined.tamper_answer = spoil
    with pytest.raises(ProtocolError):
        joined.walk(Scan, "quorum")


def _next(topology: Topology, **changes: Any) -> Topology:
    return replace(topology, epoch=topology.epoch + 1, **changes)


class TestForeignKeys:
    """Keys of clients of other languages that are neither str, bytes nor int."""

    FOREIGN = (b"\x80odd", b"\xfeshort", b"\xc3(")

    def store(self, joined: Joined, *encoded: bytes) -> None:
        items: list[Any] = [(key, key, TYPES.encode(1)) for key in encoded]
        deadline = joined.now + 5000
        joined.run(PutOperation(joined.session, deadline, "i", Level("all"), items, None))

    def lose(self, joined: Joined, peer: str, encoded: bytes) -> None:
        space = keyspace(b"i", frozenset(range(PARTITIONS)))
        del joined.stores[peer].records[locate(space, [encoded])[0]]

    @pytest.mark.parametrize("level", ["one", "quorum", "all"])
    @pytest.mark.parametrize("missed_by", ["", "a", "b", "c", "ab"])
    def test_foreign_keys_are_counted_when_replicas_agree_or_differ(
        self, joined: Joined, level: str, missed_by: str
    ) -> None:
        joined.put(KEYS, "all")
        self.store(joined, *self.FOREIGN)
        for peer in missed_by if level != "one" else "":
            for key in self.FOREIGN:
                self.lose(joined, peer, key)
        level = "all" if missed_by == "ab" and level == "quorum" else level
        assert seen(joined, Count, level) == len(KEYS) + len(self.FOREIGN)

    def test_foreign_key_differs_from_bytes_key_with_same_bytes(self, joined: Joined) -> None:
        self.store(joined, b"\x80odd", b"\xff\x80odd")
        for key in (b"\x80odd", b"\xff\x80odd"):
            self.lose(joined, "a", key)
        assert seen(joined, Count) == 2

    @pytest.mark.parametrize("request_", [Scan, ScanKeys])
    @pytest.mark.parametrize("missed_by", ["", "a", "b"])
    def test_scan_of_foreign_keys_raises(
        self, joined: Joined, request_: Any, missed_by: str
    ) -> None:
        self.store(joined, b"\x80odd")
        for peer in missed_by:
            self.lose(joined, peer, b"\x80odd")
        with pytest.raises(ProtocolError, match="neither str, bytes nor int"):
            seen(joined, request_)
