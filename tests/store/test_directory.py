"""Tests of the data directory: local disks only, and one process only."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import pytest

from dstash.cluster.membership.local.membership import LocalMembership
from dstash.errors import MembershipError, StoreError
from dstash.store import directory
from dstash.store.lmdb import LmdbStore


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake the list of mounts: an NFS in a directory with a space."""
    place = tmp_path / "far away"
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        f"server:/x {str(place).replace(' ', chr(92) + '040')} nfs4 rw 0 0\n"
        f"/dev/vdb {tmp_path}/far\\040away/near ext4 rw 0 0\n"
    )
    monkeypatch.setattr(directory, "MOUNTS", mounts)
    return place


def test_network_file_system_is_refused(mounted: Path) -> None:
    with pytest.raises(StoreError, match=r"is on a network file system \(nfs4\)"):
        LmdbStore(mounted / "data")
    with pytest.raises(MembershipError, match=r"is on a network file system \(nfs4\)"):
        LocalMembership(mounted / "members", "c")


def test_local_disk_near_a_network_mount_is_accepted(mounted: Path) -> None:
    assert directory.network_kind(mounted / "near" / "data") is None
    assert directory.network_kind(mounted.parent) is None
    mounted.with_name("mounts").unlink()
    assert directory.network_kind(mounted) is None


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_access_a_new_data_directory(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = LmdbStore(tmp_path / "parent" / "data", reserve=1 << 20)
        store._mark_corrupt("for a test")
        store.close()
    finally:
        os.umask(before)
    modes = {
        file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "parent").rglob("*")
    }
    assert modes.pop("data") == 0o700
    assert modes.keys() == {"data.mdb", "lock.mdb", "LOCK", "RESERVE", "DAMAGED"}
    assert set(modes.values()) == {0o600}


def test_mode_of_a_shared_directory_is_reported(tmp_path: Path) -> None:
    for mode, found in {0o700: "", 0o1700: "", 0o710: "0710", 0o755: "0755"}.items():
        tmp_path.chmod(mode)
        assert directory.shared_mode(tmp_path) == found


def test_directory_that_cannot_be_created_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/data: Not a directory; set data_dir to "):
        LmdbStore(tmp_path / "file" / "data")


def test_oldest_set_aside_stores_are_deleted(tmp_path: Path) -> None:
    asides: list[Path] = []
    for number in range(directory.MAX_SET_ASIDE + 2):
        LmdbStore(tmp_path).close()
        aside, dropped = directory.set_aside(tmp_path)
        os.utime(aside, (number, number))
        asides.append(aside)
        assert dropped == asides[: -directory.MAX_SET_ASIDE][-1:]
    kept = asides[-directory.MAX_SET_ASIDE :]
    size = (kept[0] / directory.DATA_FILE).stat().st_size
    assert directory.set_aside_stores(tmp_path) == {path.name: size for path in kept}
    assert not (tmp_path / directory.DATA_FILE).exists()


def test_removal_is_noted_until_the_peer_is_added(tmp_path: Path) -> None:
    assert not directory.is_marked_removed(tmp_path)
    directory.unmark_removed(tmp_path)
    directory.mark_removed(tmp_path)
    directory.mark_removed(tmp_path)
    assert directory.is_marked_removed(tmp_path)
    directory.unmark_removed(tmp_path)
    assert not directory.is_marked_removed(tmp_path)


def test_store_is_refused_in_forked_child(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        pid = os.fork()
    if pid == 0:
        refused = 0
        for use in (store.snapshot().__enter__, lambda: store.commit([])):
            try:
                use()
            except StoreError as error:
                refused += "before a fork" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    store.close()
