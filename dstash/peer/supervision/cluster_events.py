"""Logs what changes in the cluster, as one peer sees it: members, quorums, topology changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import structlog

from dstash import events
from dstash.cluster.topology.blockers import waits
from dstash.cluster.topology.copies import count_copies
from dstash.cluster.topology.view import View
from dstash.peer.supervision.rate_limit import RateLimit

_log = structlog.get_logger("dstash.peer")

#: How often (milliseconds) an event that was held back is tried again.
_INTERVAL_MS: Final = 1000
#: How often (milliseconds) a topology change is examined, and how long it must have waited.
_CHANGE_INTERVAL_MS: Final = 5000
_WAITED_MS: Final = 10_000
#: Lines of one kind per minute: about one member, about quorums, about the topology change.
_BURST: Final = 4
_PERIOD_MS: Final = 60_000


class ClusterEvents:
    """Logs the events of the cluster that one peer sees.

    Args:
        me: its id.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._limit = RateLimit(_BURST, _PERIOD_MS)
        self._view: View | None = None
        self._due = self._change_due = 0
        #: Members whose end was logged, and when.
        self._down: dict[str, int] = {}
        self._without_quorum = self._logged_without_quorum = 0
        #: What the topology change waits for, since when, and what of it was logged.
        self._waits_since: dict[str, int] = {}
        self._logged_waits: set[str] = set()

    def watch(self, view: View | None, now: int) -> None:
        """Log what has changed. Call it often.

        Args:
            view: the present view of the peer.
            now: milliseconds of a steady clock.
        """
        is_new = view is not self._view
        if view is None or not (is_new or now >= self._due):
            return
        self._view, self._due = view, now + _INTERVAL_MS
        if is_new:
            self._without_quorum = _without_quorum(view, self._me)
        self._watch_members(view, now)
        self._watch_quorums(view, now)
        if now >= self._change_due:
            self._change_due = now + _CHANGE_INTERVAL_MS
            self._watch_change(view, now)

    def _watch_members(self, view: View, now: int) -> None:
        down = view.members.keys() - view.alive - {self._me}
        numbers = {"down": len(down), "members": len(view.members)}
        for peer in sorted(down - self._down.keys()):
            if self._limit.admits(peer, now):
                self._down[peer] = now
                member = view.members[peer]
                where = {"zone": member.zone, "address": member.address}
                _log.warning(events.MEMBER_DOWN, member=peer, **where, **numbers)
        for peer in sorted(self._down.keys() - down):
            if peer not in view.members:
                del self._down[peer]  # it was removed
            elif self._limit.admits(peer, now):
                away_s = (now - self._down.pop(peer)) // 1000
                _log.info(events.MEMBER_BACK, member=peer, away_s=away_s, **numbers)

    def _watch_quorums(self, view: View, now: int) -> None:
        lost, logged = self._without_quorum, self._logged_without_quorum
        if lost == logged or not self._limit.admits("quorum", now):
            return
        self._logged_without_quorum = lost
        numbers = {"without_quorum": lost, "of": len(view.readers)}
        if lost > logged:
            down = sorted(view.members.keys() - view.alive - {self._me})
            _log.error(events.QUORUM_LOST, partitions=lost - logged, **numbers, down=down)
        else:
            _log.info(events.QUORUM_REGAINED, partitions=logged - lost, **numbers)

    def _watch_change(self, view: View, now: int) -> None:
        found = _blockers(view)
        self._waits_since = {text: self._waits_since.get(text, now) for text in found}
        for text, since in self._waits_since.items():
            is_due = now - since >= _WAITED_MS and text not in self._logged_waits
            if is_due and self._limit.admits("change", now):
                self._logged_waits.add(text)
                _log.warning(events.CHANGE_WAITS, why=text)
        if self._logged_waits and not found:
            _log.info(events.CHANGE_CONTINUES)
        self._logged_waits &= self._waits_since.keys()


def _without_quorum(view: View, me: str) -> int:
    """Return how many partitions have too few replicas for a quorum."""
    if not view.topology.formed:
        return 0
    alive = view.alive | {me}
    up = {peer for peer, member in view.members.items() if member.synced and peer in alive}
    sets = Counter(view.readers).items()
    counted = ((len(owners), len(up.intersection(owners)), count) for owners, count in sets)
    return count_copies(counted, len(view.readers)).lost


def _blockers(view: View) -> list[str]:
    is_calm = view.topology.change is None and all(m.synced for m in view.topology.members)
    if is_calm or not view.topology.formed:
        return []
    # Members that are alive reach the epoch by themselves, soon.
    status: Mapping[str, Mapping[str, Any]] = {peer: {"epoch": view.epoch} for peer in view.alive}
    return waits(view, status)
