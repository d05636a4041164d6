"""The place of a store: which machine it is on, and whether its files can be shared there."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstash.store import directory
from dstash.store.sharing import places
from dstash.store.sharing.places import Machine, StorePlace, this_machine, why_not_shared


def test_place_is_read_as_it_was_written() -> None:
    place = StorePlace(Machine("boot", "id"), "/data", "store")
    assert StorePlace.of(place.fields()) == place
    assert StorePlace.of([*place.fields(), "of a later version"]) == place
    assert StorePlace.of([]) is None
    assert StorePlace.of(["boot", "id", 1, "store"]) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Machine("b", "m"), Machine("b", "m"), True),
        (Machine("b", ""), Machine("b", "m"), True),
        (Machine("b", "m"), Machine("b", "n"), False),
        (Machine("b", "m"), Machine("c", "m"), False),
        (Machine("", "m"), Machine("", "m"), False),
    ],
)
def test_machines_are_the_same_by_boot_and_identity(
    one: Machine, other: Machine, same: bool
) -> None:
    assert one.is_same(other) is same


def test_local_directory_is_shared(tmp_path: Path) -> None:
    assert this_machine().is_same(this_machine())
    assert why_not_shared(tmp_path) == ""


@pytest.mark.parametrize("kind", ["fuse.something", "nfs4", "virtiofs"])
def test_other_file_systems_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"dev / ext4 rw 0 0\nserver {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(directory, "MOUNTS", mounts)
    assert f"file system {kind!r}" in why_not_shared(tmp_path)


def test_machine_without_a_boot_id_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BOOT_ID", tmp_path / "missing")
    assert "which boot" in why_not_shared(tmp_path)
