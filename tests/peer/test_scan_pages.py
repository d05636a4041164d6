"""Pages of scans: digests, limits and corrupt records."""

from __future__ import annotations

import pytest
from xxhash import xxh3_128_intdigest

from dstash.errors import ProtocolError
from dstash.peer import scan_pages
from dstash.store.record import split_storage_key
from dstash.wire import codec
from dstash.wire.messages import Count, Page, Scan, ScanKeys
from tests.peer.test_core import EVERYWHERE, Peer, put, topology

NAMES = [b"%d" % number for number in range(60)]
#: Index, prefix, partitions, after, keys and bytes of a page.
WHOLE = ("i", b"", EVERYWHERE, b"", 1000, 10**6)


@pytest.fixture
def peer() -> Peer:
    peer = Peer(topology())
    peer.ask(put(*NAMES))
    return peer


def page_of(peer: Peer, request: Scan | ScanKeys | Count) -> Page:
    answer = peer.ask(request)
    assert isinstance(answer, Page), answer
    return answer


def entries(page: Page) -> dict[int, tuple[int, int]]:
    """Return count and digest by place in the list of partitions."""
    parts = [page.digests[begin : begin + 22] for begin in range(0, len(page.digests), 22)]
    read = int.from_bytes
    return {
        read(part[:2], "big"): (read(part[2:6], "big"), read(part[6:], "big")) for part in parts
    }


def expected(peer: Peer, *without: bytes) -> dict[int, tuple[int, int]]:
    """Compute the digests from the records as docs/protocol.md specifies."""
    sums: dict[int, tuple[int, int]] = {}
    for storage_key, record in peer.store.records.items():
        partition, _, key = split_storage_key(storage_key)
        if key not in without:
            count, total = sums.get(partition, (0, 0))
            total += xxh3_128_intdigest(storage_key + record[:28])
            sums[partition] = (count + 1, total % 2**128)
    return sums


@pytest.mark.parametrize("kind", [Scan, ScanKeys, Count])
def test_page_has_digest_of_each_partition(peer: Peer, kind: type[Scan]) -> None:
    page = page_of(peer, kind(*WHOLE, digest=True))
    assert entries(page) == expected(peer)
    assert (page.count, page.corrupt, page.moment) == (len(NAMES), b"", peer.now)


def test_page_without_digest_equals_that_of_earlier_version(peer: Peer) -> None:
    page = page_of(peer, Count(*WHOLE, until=b"1", moment=1))
    assert (page.digests, page.corrupt, page.moment) == (b"", b"", 0)
    assert page.count == len(NAMES)


def test_range_digest_ends_with_the_key_given(peer: Peer) -> None:
    partition, _, until = split_storage_key(sorted(peer.store.records)[30])
    packed = EVERYWHERE[: 2 * partition + 2]
    page = page_of(peer, Count("i", b"", packed, b"", 1000, 10**6, True, until, peer.now))
    assert page.done == partition + 1
    assert page.count == 31


def test_digests_of_short_answers_add_up(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_pages, "VISITS", 3)
    sums: dict[int, tuple[int, int]] = {}
    rest, after, answers = EVERYWHERE, b"", 0
    while rest:
        page = page_of(peer, Count("i", b"", rest, after, 1000, 10**6, True))
        first = int.from_bytes(rest[:2], "big")
        for place, (count, digest) in entries(page).items():
            before = sums.get(first + place, (0, 0))
            sums[first + place] = (before[0] + count, (before[1] + digest) % 2**128)
        rest, after, answers = rest[2 * page.done :], page.after, answers + 1
    assert sums == expected(peer)
    assert answers > 50


def test_moment_of_request_decides_expiry(peer: Peer) -> None:
    peer.ask(put(b"expiring", expiry=peer.now + 100))
    peer.now += 200
    assert page_of(peer, Count(*WHOLE, digest=True)).count == len(NAMES)
    earlier = page_of(peer, Count(*WHOLE, digest=True, moment=peer.now - 150))
    assert (earlier.count, earlier.moment) == (len(NAMES) + 1, peer.now - 150)
    assert entries(earlier) == expected(peer)


@pytest.mark.parametrize("kind", [Scan, ScanKeys, Count])
def test_corrupt_record_is_reported_within_page_with_digest(peer: Peer, kind: type[Scan]) -> None:
    place = sorted(peer.store.records)[40]
    partition, _, key = split_storage_key(place)
    peer.store.records[place] = peer.store.records[place][:30]
    page = page_of(peer, kind(*WHOLE, digest=True))
    assert page.corrupt == partition.to_bytes(2, "big")
    assert entries(page) == expected(peer, key)
    assert page.count == len(NAMES) - 1
    assert peer.core.local_partitions.corruption.found == 1
    names = codec.unpack_keys(page.keys)
    assert len(names) == {Scan: 59, ScanKeys: 60, Count: 0}[kind]
    assert (key in names) is (kind is ScanKeys)


def test_malformed_partitions_are_refused(peer: Peer) -> None:
    assert isinstance(peer.refusal(Count("i", b"", b"\x00", b"", 1, 1, True)), ProtocolError)
