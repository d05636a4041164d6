"""What is wrong with a cluster, in words, as one peer sees it: the dashboard says this first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dstash.cluster.topology.blockers import waits
from dstash.peer.http.dashboard.state import Known
from dstash.types import Level

_Facts = Mapping[str, Any]
#: How bad it is (2: requests fail, 1: something is missing, 0: worth knowing), and a sentence.
_Found = Iterable[tuple[int, str]]


def alerts(known: Known, facts: _Facts) -> list[dict[str, Any]]:
    """Return what is wrong, the worst first; ``facts`` is what the board says."""
    found = [one for rule in _RULES for one in rule(known, facts)]
    found.sort(key=lambda one: -one[0])
    return [{"badness": badness, "text": text} for badness, text in found]


def _not_joined(known: Known, facts: _Facts) -> _Found:
    view, me = known.view, known.peer
    if view is None:
        yield 2, f"peer {me} has not joined a cluster"
    elif me not in view.members:
        yield 2, f"peer {me} is not a member; let it in with: dstash cluster add {me}"
    elif not view.topology.formed:
        have, wanted = len(view.members), view.topology.min_peers
        yield 2, f"{have} of {wanted} peers have joined; no request is served before"


def _no_quorum(known: Known, facts: _Facts) -> _Found:
    lost = fewer = 0
    for one in facts["sets"]:
        if one["up"] < Level.QUORUM.needed(len(one["peers"])):
            lost += one["partitions"]
        elif one["up"] < len(one["peers"]):
            fewer += one["partitions"]
    whole = facts["partitions"]
    if lost:
        until = "reads and writes of their keys fail until a replica is back"
        yield 2, f"no quorum for {lost} of {whole} partitions: {until}"
    if fewer:
        yield 1, f"{fewer} of {whole} partitions have a replica less; they have a quorum"


def _own_alerts(known: Known, facts: _Facts) -> _Found:
    """Yield what peers say is wrong with them, each trouble with all who have it."""
    said = [(known.peer, known.status), *((p, s.status) for p, s in known.sights.items())]
    peers: dict[str, list[str]] = {}
    for peer, status in sorted(said, key=lambda pair: pair[0]):
        for text in status.get("alerts", ()):
            peers.setdefault(text, []).append(peer)
    for text, named in peers.items():
        yield 1, f"{', '.join(named)}: {text}"


def _members(known: Known, facts: _Facts) -> _Found:
    for one in facts["members"]:
        if one["badness"]:
            yield one["badness"] - 1, f"{one['id']} is {one['health']}: {one['why']}"
        elif one["epoch"] not in (None, facts["epoch"]):
            yield 0, f"{one['id']} goes by epoch {one['epoch']}, not {facts['epoch']}"


def _disks(known: Known, facts: _Facts) -> _Found:
    for one in facts["members"]:
        if one["disk"] and not one["badness"]:  # else it has been said why it is not ready
            free = f"{one['free_bytes']} bytes are free"
            yield 1, f"{one['id']}: {one['disk']} ({free}); make room, or add a peer"


def _waits(known: Known, facts: _Facts) -> _Found:
    if known.view is not None and known.view.topology.formed:
        status = {peer: sight.status for peer, sight in known.sights.items()}
        for text in waits(known.view, status | {known.peer: known.status}):
            yield 1, text


_RULES: Final[tuple[Callable[[Known, _Facts], _Found], ...]] = (
    _not_joined,
    _no_quorum,
    _own_alerts,
    _members,
    _disks,
    _waits,
)
