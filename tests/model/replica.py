"""A replica of one register: the votes of the store, on a store in memory."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from dstash.limits import PARTITIONS
from dstash.store.digest import DigestKind, Sum
from dstash.store.interface import Merged, Write
from dstash.store.memory import TwinStore
from dstash.store.record import ABSENT, Record, build_record, identity_of, partition_of, version_of
from dstash.store.register.ballot import Promise, pack_promise, round_of, unpack_promise
from dstash.store.register.header import Header, is_collectable, pack_header
from dstash.store.register.voter import Bounds
from dstash.store.register.votes import Accepts, Prepares, Vote
from dstash.types import RecordFlag
from dstash.version import MAX_STAMP, ZERO, Stamp, pack, stamp_at, stamp_milliseconds

INDEX: Final = b"@r"
KEY: Final = b"key"
STORAGE_KEY: Final = partition_of(KEY).to_bytes(2, "big") + bytes((len(INDEX),)) + INDEX + KEY


def writer(number: int) -> bytes:
    """Return the writer of a proposer."""
    return number.to_bytes(4, "big")


def register(round_: int, step: int, proposer: int, header: Header, *, deleted: bool) -> bytes:
    """Return a register; its value is one byte."""
    flags = RecordFlag.REGISTER | (RecordFlag.TOMBSTONE if deleted else 0)
    payload = pack_header(header) + (b"" if deleted else b"\x01")
    version = pack(stamp_at(round_, step), writer(proposer))
    return build_record(INDEX, KEY, Record(version, flags, 0, payload))


class Replica:
    """One replica. ``broken`` names a rule that it breaks, see ``planted.py``."""

    def __init__(self, name: str, broken: str) -> None:
        self.name = name
        self.broken = broken
        self.epoch = 1
        self.streamed_from: set[str] = set()
        #: The highest open promise, or refused record's promise, of the time when it was streamed.
        self.must_reach = 0
        self.empty()

    def empty(self) -> None:
        """Lose everything."""
        self.store = TwinStore(self.name)
        self.floor: Stamp = 0
        self.horizon: Stamp = 0
        #: The highest horizon that any replica had when floors were lowered (T7).
        self.lowered: Stamp = 0
        #: The horizon on which replicas are agreeing: merges up to it wait.
        self.agreeing: Stamp = 0

    # -- state

    @property
    def record(self) -> bytes | None:
        """The register on disk."""
        return self.store.records.get(STORAGE_KEY)

    @property
    def promise(self) -> Promise:
        """The open promise; of round 0 if there is none."""
        stored = self.store.promises.get(STORAGE_KEY)
        return unpack_promise(STORAGE_KEY, stored, MAX_STAMP) if stored else Promise(0, b"")

    @property
    def version(self) -> bytes:
        """The version on disk; all zero if there is none."""
        return version_of(self.record) if self.record else ABSENT

    @property
    def round(self) -> int:
        """The round of the register on disk; 0 if there is none."""
        return round_of(self.version)

    @property
    def is_concluded(self) -> bool:
        """Whether the register reaches the promises that were open when it was streamed."""
        return self.round >= self.must_reach

    # -- votes

    def prepare(self, round_: int, proposer: int, *, is_needed: bool = False) -> Vote:
        """Vote on a round."""
        if self.broken == "promises_twice" and self.promise.round == round_:
            self.forget_promise()
        promise = Promise(round_, writer(proposer))
        return self._vote(Prepares([STORAGE_KEY], promise, [ZERO], is_needed))

    def ask(self) -> Vote:
        """Return what the replica holds, as a reader sees it."""
        return self._vote(Prepares([STORAGE_KEY], Promise(0, bytes(4)), [ZERO]))

    def accept(self, record: bytes) -> Vote:
        """Vote on a record."""
        if self.broken == "accepts_below_promise":
            self.forget_promise()
        if self.broken == "accepts_below_record" and self.version > version_of(record):
            self.store.records.pop(STORAGE_KEY)
        return self._vote(Accepts([(STORAGE_KEY, record)]))

    def _vote(self, request: Prepares | Accepts) -> Vote:
        bounds, horizons = self.bounds(), self._horizons()
        if self.broken == "votes_below_floor":
            bounds, horizons = Bounds(), None
        [merged] = self.store.commit(
            [Write([], 0, horizons=horizons, votes=request, bounds=bounds)]
        )
        return merged.votes[0]

    def bounds(self) -> Bounds:
        """Return the limits of votes."""
        return Bounds(self.floor, floors=[self.lowered] * PARTITIONS if self.lowered else [])

    def merge(self, record: bytes) -> Merged:
        """Merge a register from another replica."""
        promise = self.promise
        if self.broken == "merges_past_promise":
            self.forget_promise()
        promises = {partition_of(KEY): self.agreeing}
        if self.broken == "merges_during_agreement":
            promises = {}
        write = Write([(STORAGE_KEY, record)], 0, horizons=self._horizons(), promises=promises)
        [merged] = self.store.commit([write])
        if self.broken == "merges_past_promise" and promise.round > self.round:
            self.take_promise(promise)
        return merged

    def _horizons(self) -> Any:
        return defaultdict(lambda: self.horizon)

    def forget_promise(self) -> None:
        """Remove the promise."""
        self.store.promises.pop(STORAGE_KEY, None)

    def take_promise(self, promise: Promise) -> None:
        """Take a promise of another replica if it is above what this replica holds."""
        if promise > self.promise and promise.round > self.round:
            self.store.promises[STORAGE_KEY] = pack_promise(STORAGE_KEY, promise)

    # -- streaming

    def stream(self, source: Replica) -> None:
        """Copy the register and the promise of a source (T2, T3)."""
        if source.horizon > self.horizon:
            if stamp_at(self.round) <= source.horizon and self.version > source.version:
                self.store.records.pop(STORAGE_KEY, None)
            self.horizon = source.horizon
            self.floor = max(self.floor, source.horizon)
        self.lowered = max(self.lowered, source.lowered)
        record = source.record
        if record is not None and self.broken != "streams_nothing":
            promise = self.promise
            if self.broken == "streams_past_promises":
                self.forget_promise()
            merged = self.merge(record)
            if self.broken == "streams_past_promises":
                self.take_promise(promise)
            if merged.preempted:
                self.must_reach = max(self.must_reach, self.promise.round)
        if self.broken not in ("streams_no_promises", "streams_nothing"):
            self.take_promise(source.promise)
        self.must_reach = max(self.must_reach, self.promise.round)
        if self.broken in ("ends_streaming_early", "streams_past_promises"):
            self.must_reach = 0
        self.streamed_from.add(source.name)

    # -- tombstone GC

    def digest(self, horizon: Stamp) -> bytes:
        """Return the digest of everything up to a horizon."""
        total = Sum(horizon, horizon, DigestKind.WRITES)
        total.add(self.store.records.items())
        return total.digest()

    def collect(self) -> None:
        """Drop what the horizon covers (D2)."""
        record = self.record
        if record is not None and is_collectable(record, self.horizon):
            drops = [(STORAGE_KEY, identity_of(record))]
            self.store.commit([Write([], 0, drops=drops)])
        if self.promise.round <= stamp_milliseconds(self.horizon):
            self.forget_promise()
