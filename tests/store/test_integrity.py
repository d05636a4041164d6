"""Tests of the integrity check of a store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import DATA_FILE
from dstash.store.integrity import can_be_read
from dstash.store.lmdb import LmdbStore


def program(folder: Path, name: str, ends: str) -> str:
    """Return a program that ends with this status, regardless of its arguments."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{ends}\n")
    path.chmod(0o755)
    return str(path)


def test_check_accepts_a_sound_store(tmp_path: Path) -> None:
    LmdbStore(tmp_path / "store").close()
    assert can_be_read(tmp_path / "store")


@pytest.mark.parametrize("ends", ["exit 3", "kill -ABRT $$", "kill -BUS $$", "kill -SEGV $$"])
def test_check_ends_at_a_corrupt_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, "python", ends))
    assert not can_be_read(tmp_path)


@pytest.mark.parametrize("ends", ["exit 1", "exit 127", "kill -KILL $$"])
def test_other_exit_status_gives_no_result_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    folder = tmp_path / "store"
    LmdbStore(folder).close()
    size = (folder / DATA_FILE).stat().st_size - 4096
    os.truncate(folder / DATA_FILE, size)
    monkeypatch.setattr(sys, "executable", program(tmp_path, "python", ends))
    with pytest.raises(StoreError, match="cannot check whether") as caught:
        LmdbStore(folder)
    assert not isinstance(caught.value, CorruptStore)  # which may be moved away
    assert (folder / DATA_FILE).stat().st_size == size
