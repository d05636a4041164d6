"""Opening the store of a peer: its id, and stores that are set aside."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dstash import events
from dstash.config import PeerSettings
from dstash.errors import ForeignStore
from dstash.peer.supervision.opening import open_store, peer_id, replace_removed
from dstash.store.directory import is_marked_removed, set_aside_stores
from dstash.store.interface import Identity


def settings(folder: Path, **more: str) -> PeerSettings:
    return PeerSettings(data_dir=folder, **more)  # type: ignore[arg-type]


def test_id_in_the_store_is_used_wherever_its_directory_is(tmp_path: Path) -> None:
    first = settings(tmp_path / "box1")
    with closing(open_store(first)) as store:
        assert peer_id(first, store) == "box1"
        assert peer_id(settings(tmp_path / "box1", id="a"), store) == "a"
        store.adopt(Identity("cluster", "box1", store.store_id))
    moved = settings((tmp_path / "box1").rename(tmp_path / "box2"))
    with closing(open_store(moved)) as store:
        assert peer_id(moved, store) == "box1"
        with pytest.raises(ForeignStore, match="belongs to peer 'box1', not to 'box2'"):
            peer_id(settings(tmp_path / "box2", id="box2"), store)


def test_removed_peer_gets_an_empty_store_and_is_marked(tmp_path: Path) -> None:
    given = settings(tmp_path)
    store = open_store(given)
    store.mark(b"name", b"content")
    with capture_logs() as logs:
        replaced = replace_removed(given, store)
    with closing(replaced):
        assert replaced.store_id != store.store_id
        assert replaced.marked(b"name") is None
    (aside,) = set_aside_stores(tmp_path)
    assert logs[-1]["old_store"] == str(tmp_path / aside)
    assert is_marked_removed(tmp_path)


def test_directory_that_others_can_access_is_logged(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with capture_logs() as logs:
        open_store(settings(tmp_path)).close()
    (line,) = [line for line in logs if line["event"] == events.DIRECTORY_SHARED]
    assert (line["mode"], line["remedy"]) == ("0750", f"chmod 700 {tmp_path}")
    with capture_logs() as logs:
        open_store(settings(tmp_path / "new")).close()
    assert not [line for line in logs if line["event"] == events.DIRECTORY_SHARED]
