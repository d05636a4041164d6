"""Pages of a scan, and the digests that compare them between replicas.

A page walks partitions in the given order, within bounds of keys, bytes and visits, so that one
request does not delay other requests for long. A digest covers exactly the live records of one
partition in the page; a client compares it with the digest of another replica for the same range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_128_intdigest

from dstash.errors import CorruptRecord
from dstash.store.interface import Snapshot
from dstash.store.record import (
    HEAD_BYTES,
    PLAIN,
    VERSION_END,
    Keyspace,
    is_intact,
    is_live_head,
)
from dstash.store.register.header import is_register, value_of
from dstash.wire import codec
from dstash.wire.messages import Page
from dstash.wire.shapes import Frame

#: The most records that a page reads: tombstones and other indexes cost time too. A large record
#: counts once more for each ``_VISIT_BYTES``, because all of it is read.
VISITS: Final = 20_000
_VISIT_BYTES: Final = 4096

_MODULUS: Final = (1 << 128) - 1
_DIGEST_BYTES: Final = 16
#: Place in the list and number of live records, in front of a digest.
_ENTRY_HEAD: Final = Struct(">HI")
_PLACE: Final = Struct(">H")


class PageRequest(NamedTuple):
    """The range of a page, and the kinds of content it has.

    ``until`` is the last key of the last partition, empty for all of it. ``now`` is the time at
    which records are live or expired.
    """

    prefix: bytes
    partitions: Sequence[int]
    after: bytes
    max_keys: int
    max_bytes: int
    now: int
    with_keys: bool = False
    with_values: bool = False
    with_digest: bool = False
    until: bytes = b""


class PageBuilder:
    """Builds one page of a scan.

    Args:
        snapshot: the records.
        space: the index.
        request: the range, and what the page has.
        is_dropped: returns whether a (storage key, record) was dropped with its index; None
            if no record on disk was.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        space: Keyspace,
        request: PageRequest,
        is_dropped: Callable[[bytes, bytes], bool] | None = None,
    ) -> None:
        self._is_dropped = is_dropped
        self._snapshot = snapshot
        self._space = space
        self._request = request
        self._visits = 0
        self._weight = 0
        self._count = 0
        self._keys: list[bytes] = []
        self._payloads: list[bytes] = []
        self._digests: list[bytes] = []
        self._corrupt_places: list[bytes] = []
        #: The storage keys of corrupt records that were found.
        self.corrupt: list[bytes] = []

    def build(self) -> Page:
        """Walk until a bound is reached or the partitions end.

        Without digests, a corrupt record ends the page before it.

        Raises:
            CorruptRecord: the first record is corrupt, and the page has no digests. By the next
                attempt it may have been repaired; otherwise another replica can answer.
        """
        after, with_digest = self._request.after, self._request.with_digest
        for done, partition in enumerate(self._request.partitions):
            last = self._walk(done, partition, after)
            if self.corrupt and not with_digest:
                if not done and not last:
                    raise CorruptRecord("a record of this page fails its checksum")
                return self._page(done, last)
            if last:
                return self._page(done, last)
            after = b""
        return self._page(len(self._request.partitions), b"")

    def _walk(self, place: int, partition: int, after: bytes) -> bytes:
        """Walk one partition; returns the last key if a bound stopped the walk, else empty."""
        space, now, with_digest = self._space, self._request.now, self._request.with_digest
        begin = space.prefix(partition)
        cut = len(begin)
        # A payload that is not returned is not verified, as in a look-up: a corrupt head changes
        # the digest.
        trusts_plain = with_digest and not self._request.with_values
        self._visits += 1
        count = total = 0
        last = b""
        try:
            for storage_key, record in self._records(place, begin, after):
                key = storage_key[cut:]
                tail = record[VERSION_END:HEAD_BYTES]
                is_plain = tail == PLAIN and len(record) > HEAD_BYTES
                if not (is_plain and trusts_plain) and not is_intact(record, key, space.salt):
                    self._report_corrupt(place, storage_key, key)
                    if not with_digest:
                        return last
                elif self._is_dropped is not None and self._is_dropped(storage_key, record):
                    pass  # it costs a visit, as a tombstone does
                elif is_plain or is_live_head(tail, now):
                    count += 1
                    if with_digest:
                        total += xxh3_128_intdigest(storage_key + record[:VERSION_END])
                    self._take(key, record, is_plain=is_plain)
                self._visits += 1 + len(record) // _VISIT_BYTES
                last = key
                if self._is_full():
                    return last
        finally:
            self._count += count
            if with_digest and count:
                digest = (total & _MODULUS).to_bytes(_DIGEST_BYTES, "big")
                self._digests.append(_ENTRY_HEAD.pack(place, count) + digest)
        return b""

    def _records(self, place: int, begin: bytes, after: bytes) -> Iterator[tuple[bytes, bytes]]:
        prefix, until = self._request.prefix, self._request.until
        first = begin + (after + b"\0" if after >= prefix and after else prefix)
        is_last = place == len(self._request.partitions) - 1
        end = begin + until + b"\0" if until and is_last else _end_of(begin + prefix)
        return self._snapshot.walk(first, end)

    def _report_corrupt(self, place: int, storage_key: bytes, key: bytes) -> None:
        self.corrupt.append(storage_key)
        packed = _PLACE.pack(place)
        if self._corrupt_places[-1:] != [packed]:
            self._corrupt_places.append(packed)
        if self._request.with_digest and self._request.with_keys and not self._request.with_values:
            self._keys.append(key)
            self._weight += len(key)

    def _take(self, key: bytes, record: bytes, *, is_plain: bool) -> None:
        if self._request.with_keys:
            self._keys.append(key)
            self._weight += len(key)
        if self._request.with_values:
            is_bare = is_plain or not is_register(record)
            payload = record[HEAD_BYTES:]
            self._payloads.append(payload if is_bare else value_of(payload))
            self._weight += len(record)

    def _is_full(self) -> bool:
        return (
            len(self._keys) >= self._request.max_keys
            or self._weight >= self._request.max_bytes
            or self._visits >= VISITS
        )

    def _page(self, done: int, after: bytes) -> Page:
        keys = Frame(codec.pack_blobs(self._keys))
        values = Frame(codec.join_payloads(self._payloads))
        if not self._request.with_digest:
            return Page(done, after, self._count, keys, values)
        digests, corrupt = b"".join(self._digests), b"".join(self._corrupt_places)
        return Page(done, after, self._count, keys, values, digests, corrupt, self._request.now)


def _end_of(prefix: bytes) -> bytes:
    """Return the first storage key after all keys that begin with ``prefix``."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\xff" * 512
