"""Which members confirm a change of settings, also where an older topology was put back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstash.cluster.topology.indexes.acks import SettingsAcks
from dstash.cluster.topology.indexes.steps import with_settings
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from tests.harness.joined import Joined

WANTED = {"ttl": 5, "max_ttl": 9}


@pytest.fixture(scope="module")
def before() -> Topology:
    """The topology of three members, before any request."""
    return Joined().topology


def acks_of(requested: Topology, known: Topology, *, is_kept: bool = True) -> SettingsAcks:
    """Return the acks of a request of which all members know a topology."""
    acks = SettingsAcks(requested, "i", WANTED)
    for peer in "abc":
        acks.take(peer, known, is_kept=is_kept)
    return acks


def test_members_confirm_settings_that_their_topology_on_disk_has(before: Topology) -> None:
    requested, view = with_settings(before, "i", WANTED, 1), View(before)
    assert acks_of(requested, requested).is_acked(view)
    unkept = acks_of(requested, requested, is_kept=False)
    assert not unkept.is_acked(view)
    assert not unkept.is_lost(view)
    earlier = acks_of(requested, before)
    assert not earlier.is_acked(view)
    assert not earlier.is_lost(view), "they have not read the membership yet"


def test_settings_of_the_newer_topology_that_was_taken_away_confirm_nothing(
    before: Topology,
) -> None:
    """A member that had not seen the newer topology made the request after the older one."""
    newer = with_settings(replace(before, epoch=before.epoch + 10), "i", {"ttl": 7}, 1)
    requested, view = with_settings(before, "i", WANTED, 2), View(before)
    acks = acks_of(requested, newer)
    assert not acks.is_acked(view), "members restore the newer topology, which lacks the settings"
    assert acks.is_lost(view)


def test_settings_that_a_later_request_replaced_are_not_acked(before: Topology) -> None:
    requested, view = with_settings(before, "i", WANTED, 1), View(before)
    acks = acks_of(requested, with_settings(requested, "i", {"ttl": 6}, 2))
    assert not acks.is_acked(view), "its number does not show that it is later"
    assert acks.is_lost(view)


def test_later_request_about_another_setting_or_index_changes_no_ack(before: Topology) -> None:
    requested, view = with_settings(before, "i", {"ttl": 5}, 1), View(before)
    later = with_settings(with_settings(requested, "i", {"max_ttl": 9}, 2), "j", {"ttl": 7}, 3)
    acks = SettingsAcks(requested, "i", {"ttl": 5})
    for peer in "ab":
        acks.take(peer, later, is_kept=True)
    assert acks.is_acked(view)


def test_removed_settings_are_confirmed_by_a_topology_without_them(before: Topology) -> None:
    known = with_settings(before, "i", {"ttl": 5}, 1)
    requested = with_settings(known, "i", {"ttl": 0}, 2)
    for topology, is_acked in (requested, True), (replace(known, epoch=requested.epoch), False):
        acks = SettingsAcks(requested, "i", {"ttl": 0})
        for peer in "abc":
            acks.take(peer, topology, is_kept=True)
        assert acks.is_acked(View(before)) is is_acked
