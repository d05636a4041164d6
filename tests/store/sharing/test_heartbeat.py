"""A heartbeat shows other processes whether a peer lives, and which mark holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstash.errors import StoreError
from dstash.store.directory import DATA_FILE
from dstash.store.lmdb import LmdbStore
from dstash.store.sharing.heartbeat import (
    BEATEN_AT,
    HEARTBEAT_FILE,
    TICKET,
    Heartbeat,
    SeenHeartbeat,
    boot_time_ns,
)
from dstash.store.sharing.mark import Generation


@pytest.fixture
def heartbeat(tmp_path: Path) -> Iterator[Heartbeat]:
    made = Heartbeat(tmp_path)
    yield made
    made.close()


def test_reader_sees_the_ticket_and_the_time_at_once(heartbeat: Heartbeat, tmp_path: Path) -> None:
    seen = SeenHeartbeat(tmp_path)
    assert seen.process == os.getpid()
    assert seen.words[TICKET] == 0
    heartbeat.show(7, Generation(2, 3))
    assert (seen.words[TICKET], seen.generation) == (7, Generation(2, 3))
    before = boot_time_ns()
    heartbeat.beat()
    assert before <= seen.words[BEATEN_AT] <= boot_time_ns()
    heartbeat.show(0, Generation(2, 3))
    assert seen.words[TICKET] == 0
    seen.close()


def test_store_that_is_opened_silences_an_earlier_heartbeat(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path)
    heartbeat.show(7, Generation(2, 3))
    seen = SeenHeartbeat(tmp_path)
    LmdbStore(tmp_path).close()
    assert (seen.words[TICKET], seen.words[BEATEN_AT]) == (0, 0)
    seen.close()
    heartbeat.close()


def test_file_that_is_no_heartbeat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SeenHeartbeat(tmp_path)
    (tmp_path / HEARTBEAT_FILE).write_bytes(b"short")
    with pytest.raises(StoreError, match="too short"):
        SeenHeartbeat(tmp_path)
    (tmp_path / HEARTBEAT_FILE).write_bytes(bytes(4096))
    with pytest.raises(StoreError, match="another version"):
        SeenHeartbeat(tmp_path)


def test_heartbeat_has_the_rights_of_the_data_file(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).touch()
    for mode in (0o660, 0o600):
        (tmp_path / DATA_FILE).chmod(mode)
        Heartbeat(tmp_path).close()
        assert (tmp_path / HEARTBEAT_FILE).stat().st_mode & 0o777 == mode
