"""Tests of free space: the limit for puts, the reserve for deletes, and the log."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dstash.limits import MIB
from dstash.store import reserve as reserves
from dstash.store.interface import DiskState
from dstash.store.reserve import RESERVE_FILE, Reserve
from dstash.store.space import Space

Disk = namedtuple("Disk", "f_bavail f_blocks f_frsize")


class FakeDisk:
    """A disk of any size; the blocks of the reserve reduce its free space."""

    def __init__(self, free: int, total: int) -> None:
        self.free, self.total, self.now = free, total, 0.0

    def statvfs(self, path: object) -> Disk:
        return Disk(self.free, self.total, 1)

    def allocate(self, handle: int, begin: int, size: int) -> None:
        if size > self.free:
            raise OSError(28, "No space left on device")
        self.free -= size
        os.ftruncate(handle, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    disk = FakeDisk(1000 * MIB, 1000 * MIB)
    monkeypatch.setattr(reserves.os, "statvfs", disk.statvfs)
    monkeypatch.setattr(reserves.os, "posix_fallocate", disk.allocate)
    return disk


def space(folder: Path, disk: FakeDisk, wanted: int = 64 * MIB) -> Space:
    return Space(folder, wanted, lambda: 0, lambda: disk.now)


def test_reserve_allocates_blocks_and_frees_them(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 2 * MIB)
    assert reserve.make() is None
    found = (tmp_path / RESERVE_FILE).stat()
    assert (found.st_size, found.st_blocks * 512) == (2 * MIB, 2 * MIB)
    assert Reserve(tmp_path, 2 * MIB).held == 2 * MIB, "it is found again after a restart"
    assert reserve.release()
    assert not (tmp_path / RESERVE_FILE).exists()
    assert not reserve.release(), "there is none any more"


def test_reserve_is_an_eighth_of_a_small_disk_at_most(tmp_path: Path, disk: FakeDisk) -> None:
    disk.free = disk.total = 80 * MIB
    reserve = Reserve(tmp_path, 64 * MIB)
    assert reserve.size == 10 * MIB
    assert reserve.share(32 * MIB) == 5 * MIB, "thresholds shrink with it"


def test_reserve_is_removed_if_zero_and_kept_if_unset(
    tmp_path: Path,
) -> None:
    Reserve(tmp_path, MIB).make()
    Reserve(tmp_path, None)
    assert (tmp_path / RESERVE_FILE).exists()
    Reserve(tmp_path, 0)
    assert not (tmp_path / RESERVE_FILE).exists()


def test_reserve_is_allocated_again_when_there_is_room(tmp_path: Path, disk: FakeDisk) -> None:
    ours = space(tmp_path, disk)
    ours.tend()
    assert ours.reserved == 64 * MIB
    disk.free = 0
    assert not ours.refused(may_spend=False), "a put does not spend it"
    assert ours.refused(may_spend=True)
    disk.free += 64 * MIB
    disk.now += 60
    ours.tend()
    assert ours.reserved == 0
    disk.free += 9 * MIB
    ours.tend()
    assert ours.reserved == 64 * MIB


def test_state_follows_free_space(tmp_path: Path, disk: FakeDisk) -> None:
    ours = space(tmp_path, disk)
    ours.tend()
    assert ours.state is DiskState.AMPLE
    disk.free = 64 * MIB
    assert ours.state is DiskState.SCARCE
    disk.free = 0
    assert ours.state is DiskState.FULL
    assert not ours.has_room(64 * MIB)
    assert ours.has_room(32 * MIB), "the reserve is left for repairs and deletes"
    ours.refused(may_spend=True)
    disk.free = 64 * MIB
    assert ours.state is DiskState.FULL
    disk.free = 0
    assert not ours.refused(may_spend=True), "it is spent"
    assert ours.state is DiskState.EXHAUSTED
    disk.free = 500 * MIB
    assert ours.state is DiskState.AMPLE


def test_puts_are_refused_briefly_after_a_failed_put(tmp_path: Path, disk: FakeDisk) -> None:
    ours = space(tmp_path, disk)
    ours.refused(may_spend=False)
    assert not ours.has_room(64 * MIB)
    assert ours.state is DiskState.FULL
    assert ours.has_room(32 * MIB)
    disk.now += 1
    assert ours.has_room(64 * MIB)


def test_state_changes_are_logged_once(tmp_path: Path, disk: FakeDisk) -> None:
    ours = space(tmp_path, disk)
    with capture_logs() as lines:
        ours.tend()
        disk.free = 100 * MIB
        for _ in range(50):
            disk.now += 1
            disk.free = 100 * MIB if disk.now % 2 else 20 * MIB
            ours.tend()
        disk.free = 0
        ours.tend()
        disk.free, disk.now = 800 * MIB, disk.now + 60
        ours.tend()
    said = [line["event"] for line in lines]
    assert said.count(DiskState.SCARCE.value) <= 6, "a state that comes and goes is said seldom"
    assert said[-2:] == [DiskState.FULL.value, "there is room on the disk again"]


def test_failed_reserve_is_logged_once_and_allocated_later(tmp_path: Path, disk: FakeDisk) -> None:
    disk.free = 10 * MIB
    ours = space(tmp_path, disk)
    with capture_logs() as lines:
        for _ in range(30):
            disk.now += 1
            ours.tend()
        disk.free = 900 * MIB
        ours.tend()
    said = [line["event"] for line in lines if "reserve" in line["event"]]
    assert said == [
        "the reserve of the disk cannot be allocated now; will try again",
        "the reserve of the disk is allocated",
    ]
