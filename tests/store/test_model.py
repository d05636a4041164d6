"""Model test of the store against its twin: any sequence of commits, restarts and walks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dstash.limits import MIB, PARTITIONS
from dstash.store import disk_space
from dstash.store.directory import COMPACTED, COMPACTING
from dstash.store.environment.switch import Step
from dstash.store.interface import Write
from dstash.store.lmdb import LmdbStore
from dstash.store.memory import TwinStore
from dstash.store.online import compaction
from dstash.store.record import head, keyspace
from dstash.store.register.ballot import Promise
from dstash.store.register.voter import Bounds
from dstash.store.register.votes import Accepts, Prepares
from dstash.store.sealing import seal
from dstash.types import Durability, RecordFlag
from dstash.version import MAX_STAMP, ZERO, pack, stamp_at, stamp_range_of
from tests.store.register.parts import STORAGE_KEY, register

SPACES = [keyspace(name, frozenset(range(PARTITIONS))) for name in (b"i", b"index")]
KEYS = [b"%d" % number for number in range(12)]

heads = st.builds(
    head,
    st.builds(pack, st.integers(1, 40), st.sampled_from([b"aaaa", b"bbbb"]), st.integers(0, 40)),
    st.sampled_from([0, 0, RecordFlag.TOMBSTONE]),
    st.sampled_from([0, 0, 500, 1500]),
)
payloads = st.binary(min_size=1, max_size=8) | st.integers(1, 40).map(lambda n: bytes(n * 1000))


@st.composite
def writes(draw: st.DrawFn) -> Write:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    content = [draw(payloads) for _ in keys]
    entries = seal(draw(st.sampled_from(SPACES)), keys, draw(heads), content)
    drops = [(key, record[:28]) for key, record in entries] if draw(st.booleans()) else []
    marks = [(b"mark", draw(st.binary(max_size=9)))] if draw(st.booleans()) else []
    horizons = [draw(st.integers(0, 30))] * PARTITIONS if draw(st.booleans()) else None
    newest = draw(st.integers(0, 2**64 - 1))
    now = draw(st.sampled_from([100, 1000, 2000]))
    oldest = (
        stamp_range_of([record[8:28] for _, record in entries]).oldest if draw(st.booleans()) else 0
    )
    return Write(entries, now, newest, drops, horizons, marks, oldest=oldest)


registers = st.builds(
    register,
    st.integers(1, 40),
    st.integers(0, 3),
    st.sampled_from([b"aaaa", b"bbbb"]),
    value=st.sampled_from([b"", b"\x01", b"\x02"]),
)
promises = st.builds(Promise, st.integers(0, 40), st.sampled_from([b"aaaa", b"bbbb"]))


@st.composite
def votes(draw: st.DrawFn) -> Write:
    """Return a request to vote on a register, or registers that are merged with plain records."""
    bounds = Bounds(stamp_at(draw(st.integers(0, 20))), high_water=stamp_at(50))
    horizons = [stamp_at(draw(st.integers(0, 20)))] * PARTITIONS
    content = [(STORAGE_KEY, draw(registers))]
    kind = draw(st.integers(0, 2))
    if kind == 0:
        plain = seal(SPACES[0], [draw(st.sampled_from(KEYS))], draw(heads), [b"\x01"])
        return Write([*content, *plain], 0, horizons=horizons, bounds=bounds)
    request = Accepts(content) if kind == 1 else Prepares([STORAGE_KEY], draw(promises), [ZERO])
    return Write([], 0, horizons=horizons, votes=request, bounds=bounds)


class StoreAgainstTwin(RuleBasedStateMachine):
    """Both stores do the same and must always have the same records."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.first_map = disk_space._FIRST_MAP
        disk_space._FIRST_MAP = MIB // 4  # so that the map grows during the test
        self.patch = pytest.MonkeyPatch()
        for name, number in (("_PART_RECORDS", 2), ("_MAX_WAITING", 1), ("_MIN_PAUSE_S", 0.0)):
            self.patch.setattr(compaction, name, number)
        self.twin = TwinStore()
        self.open(Durability.NONE)

    def open(self, durability: Durability) -> None:
        self.store = LmdbStore(Path(self.folder.name), durability)

    @rule(group=st.lists(writes() | votes(), min_size=1, max_size=4))
    def commit(self, group: list[Write]) -> None:
        self.commit_group(group)

    def commit_group(self, group: list[Write]) -> None:
        assert self.store.commit(group) == self.twin.commit(group)

    @rule(key=st.sampled_from(KEYS), ahead=st.integers(-1, 2), payload=payloads)
    def put_newest(self, key: bytes, ahead: int, payload: bytes) -> None:
        stamp = max(0, min(MAX_STAMP, self.twin.high_water + ahead))
        version = pack(stamp, b"cccc")
        [(storage_key, record)] = seal(SPACES[0], [key], head(version), [payload])
        if self.store.put_newest(storage_key, record, version):
            assert self.twin.put_newest(storage_key, record, version)
        else:
            assert stamp <= self.twin.high_water

    @rule(groups=st.lists(st.lists(writes() | votes(), min_size=1, max_size=2), max_size=8))
    def compact(self, groups: list[list[Write]]) -> None:
        """Compact the store, with commits at each step that does not hold commits back."""

        def commit(step: Step) -> None:
            if step in (Step.BEGUN, Step.COPYING, Step.CATCHING_UP) and groups:
                self.put_newest(KEYS[len(groups)], 1, b"\x01")
                self.commit_group(groups.pop())

        done = self.store.compact(on_step=commit)
        assert done.records == len(self.twin.records)
        assert not {COMPACTING, COMPACTED}.intersection(os.listdir(self.folder.name))

    @rule(content=st.binary(max_size=20))
    def mark(self, content: bytes) -> None:
        self.store.mark(b"mark", content)
        self.twin.mark(b"mark", content)

    @rule(durability=st.sampled_from(Durability))
    def reopen(self, durability: Durability) -> None:
        self.store.close()
        self.open(durability)

    @rule(begin=st.binary(max_size=4), end=st.binary(max_size=4))
    def walk(self, begin: bytes, end: bytes) -> None:
        with self.store.snapshot() as mine, self.twin.snapshot() as twins:
            assert list(mine.walk(begin, end)) == list(twins.walk(begin, end))

    @invariant()
    def holds_the_same(self) -> None:
        assert self.store.high_water == self.twin.high_water
        with self.store.snapshot() as snapshot:
            assert dict(snapshot.walk(b"", b"\xff" * 9)) == self.twin.records
        everything = (b"", b"\xff" * 9, 1000)
        assert self.store.promises_between(*everything) == self.twin.promises_between(*everything)
        assert self.store.stats().records == len(self.twin.records)
        assert self.store.high_water == self.twin.high_water
        assert self.store.marked(b"mark") == self.twin.marked(b"mark")

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()
        disk_space._FIRST_MAP = self.first_map
        self.patch.undo()


TestStoreAgainstTwin = StoreAgainstTwin.TestCase
TestStoreAgainstTwin.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
