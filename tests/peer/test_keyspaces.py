"""The cache of keyspaces: what it takes from a view, and what it forgets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology.view import View
from dstash.errors import LimitError
from dstash.limits import PARTITIONS
from dstash.peer.keyspaces import Keyspaces
from tests.peer.parts import EPOCH, view_of


def changed(view: View, epoch: int, *, synced: bool) -> View:
    """Return a view in which the state of the store of peer ``a`` is known."""
    first, *others = view.topology.members
    members = (replace(first, synced=synced), *others)
    return View(replace(view.topology, epoch=epoch, members=members), view.alive)


def test_view_decides_which_partitions_are_held() -> None:
    keyspaces = Keyspaces("a")
    assert keyspaces.owned == frozenset()
    keyspaces.install(view_of("a"))
    assert keyspaces.owned == frozenset(range(PARTITIONS))
    keyspaces.install(view_of("bcde", EPOCH + 1))
    assert keyspaces.owned == frozenset()
    assert keyspaces.resting == frozenset()


def test_keyspace_is_kept_until_the_epoch_changes() -> None:
    keyspaces = Keyspaces("a")
    keyspaces.install(view_of("a"))
    found = keyspaces.find("i")
    keyspaces.install(view_of("a"))
    assert keyspaces.known("i") is found
    keyspaces.install(view_of("a", EPOCH + 1))
    assert keyspaces.known("i") is None


def test_store_lacks_data_until_a_view_of_any_epoch_has_it_synced() -> None:
    keyspaces = Keyspaces("a")
    for synced in (False, True, False):
        keyspaces.install(changed(view_of("abc"), EPOCH, synced=synced))
        assert keyspaces.lacks_data is not synced
    keyspaces.install(view_of("bc", EPOCH + 1))
    assert not keyspaces.lacks_data


def test_keyspaces_are_bounded_and_names_are_checked() -> None:
    keyspaces = Keyspaces("a")
    keyspaces.install(view_of("a"))
    for number in range(100):
        keyspaces.find(f"i{number}")
    assert 0 < len(keyspaces) <= 32
    with pytest.raises(LimitError):
        keyspaces.find("")
