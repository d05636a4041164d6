"""Tests of the data directory: local disks only, and one process only."""

from __future__ import annotations

import os
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
