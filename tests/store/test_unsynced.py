"""Whether a store notices that its machine stopped before all commits were synced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dstash.errors import CorruptStore
from dstash.limits import MIB
from dstash.store import crashes
from dstash.store.directory import DATA_FILE, UNSYNCED_FILE, set_aside
from dstash.store.interface import LACKING_MARK
from dstash.store.lmdb import LmdbStore
from dstash.types import Durability
from tests.harness.small_disks import SmallDisk
from tests.store.test_lmdb import elsewhere, put

UNSYNCED = (Durability.INTERVAL, Durability.NONE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def crash(folder: Path, durability: Durability) -> None:
    """Run a process on a store, which ends without closing it."""
    elsewhere(
        """
        import os, sys
        from pathlib import Path
        from dstash.store.lmdb import LmdbStore
        from dstash.types import Durability
        from tests.store.test_lmdb import put
        store = LmdbStore(Path(sys.argv[1]), Durability(sys.argv[2]))
        put(store, *(f"key-{number}" for number in range(500)))
        os._exit(0)
        """,
        folder,
        durability.value,
    )


def boot(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Boot the machine again: from now on the kernel has another boot id."""
    file = folder.with_name("boot_id")
    file.write_text(f"{os.urandom(16).hex()}\n")
    monkeypatch.setattr(crashes, "BOOT_ID", file)


def lacks_writes(folder: Path, durability: Durability) -> bool:
    store = LmdbStore(folder, durability)
    lacks = store.may_lack_writes
    store.close()
    return lacks


@pytest.mark.parametrize("durability", UNSYNCED)
def test_killed_process_lacks_nothing_on_the_same_boot(
    folder: Path, durability: Durability
) -> None:
    crash(folder, durability)
    assert not lacks_writes(folder, durability)


@pytest.mark.parametrize("durability", UNSYNCED)
@pytest.mark.parametrize("later", Durability)
def test_machine_that_stopped_is_noticed_until_the_data_is_back(
    folder: Path, durability: Durability, later: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, durability)
    boot(monkeypatch, folder)
    assert lacks_writes(folder, later)
    assert lacks_writes(folder, Durability.SYNC)
    boot(monkeypatch, folder)
    store = LmdbStore(folder, durability)
    assert store.may_lack_writes
    store.mark(LACKING_MARK, b"")
    store.close()
    assert not lacks_writes(folder, durability)


@pytest.mark.parametrize("durability", Durability)
def test_store_that_was_closed_lacks_nothing_after_a_boot(
    folder: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(folder, durability)
    put(store, "k")
    store.close()
    boot(monkeypatch, folder)
    assert not lacks_writes(folder, durability)


def test_synced_commits_lack_nothing_after_a_boot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, Durability.SYNC)
    boot(monkeypatch, folder)
    assert not lacks_writes(folder, Durability.SYNC)


def test_commits_are_synced_once_durability_is_sync(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, Durability.INTERVAL)
    crash(folder, Durability.SYNC)
    boot(monkeypatch, folder)
    assert not lacks_writes(folder, Durability.SYNC)


def test_kernel_without_a_boot_id_counts_each_process_as_another_boot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, Durability.INTERVAL)
    monkeypatch.setattr(crashes, "BOOT_ID", folder / "missing")
    assert lacks_writes(folder, Durability.INTERVAL)


def test_store_whose_pages_were_not_all_written_is_corrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, Durability.INTERVAL)
    boot(monkeypatch, folder)
    size = (folder / DATA_FILE).stat().st_size
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    with pytest.raises(CorruptStore, match="stopped before all commits were synced"):
        LmdbStore(folder, Durability.INTERVAL)
    aside, _ = set_aside(folder)
    assert (aside / UNSYNCED_FILE).exists()
    assert not lacks_writes(folder, Durability.INTERVAL)  # it is new, and empty


def test_full_disk_does_not_hide_that_the_machine_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmallDisk(tmp_path / "disk", 8 * MIB) as disk:
        folder = disk.inside / "data"
        crash(folder, Durability.INTERVAL)
        boot(monkeypatch, tmp_path / "data")
        disk.fill()
        assert lacks_writes(folder, Durability.INTERVAL)
        assert lacks_writes(folder, Durability.SYNC)


def test_copy_of_a_closed_store_lacks_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(folder, Durability.INTERVAL)
    LmdbStore(folder, Durability.INTERVAL).close()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    boot(monkeypatch, folder)
    assert not lacks_writes(copy, Durability.INTERVAL)
