"""The alerts of the dashboard: what is wrong with the cluster, as one peer sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dstash.cluster.topology.blockers import waits
from dstash.cluster.topology.copies import count_copies, missing_copies
from dstash.peer.http.dashboard.state import Known

#: The result of ``state.describe``.
_State = Mapping[str, Any]
#: Badness (2: requests fail, 1: redundancy is lost, 0: a note) and the text of each alert.
_Alerts = Iterable[tuple[int, str]]


def alerts(known: Known, state: _State) -> list[dict[str, Any]]:
    """Return the alerts, worst first; ``state`` is the result of ``state.describe``."""
    found = [alert for rule in _RULES for alert in rule(known, state)]
    found.sort(key=lambda alert: -alert[0])
    return [{"badness": badness, "text": text} for badness, text in found]


def _not_joined(known: Known, state: _State) -> _Alerts:
    view, me = known.view, known.peer
    if view is None:
        yield 2, f"peer {me} has not joined a cluster"
    elif me not in view.members:
        yield 2, f"peer {me} is not a member; add it with: dstash cluster add {me}"
    elif not view.topology.formed:
        joined, needed = len(view.members), view.topology.min_peers
        yield 2, f"{joined} of {needed} peers have joined; requests are served once all have joined"


def _copies(known: Known, state: _State) -> _Alerts:
    sets = ((len(each["peers"]), each["up"], each["partitions"]) for each in state["sets"])
    yield from count_copies(sets, state["partitions"]).alerts()
    if known.view is not None:
        candidates = sorted(known.view.alive - known.view.members.keys())
        for text in missing_copies(known.view.topology, candidates):
            yield 1, text


def _own_alerts(known: Known, state: _State) -> _Alerts:
    """Yield the alerts of the peers' own status, each with all peers that report it."""
    statuses = [(known.peer, known.status), *((p, s.status) for p, s in known.sights.items())]
    peers_by_text: dict[str, list[str]] = {}
    for peer, status in sorted(statuses, key=lambda pair: pair[0]):
        for text in status.get("alerts", ()):
            peers_by_text.setdefault(text, []).append(peer)
    for text, peers in peers_by_text.items():
        yield 1, f"{', '.join(peers)}: {text}"


def _members(known: Known, state: _State) -> _Alerts:
    for member in state["members"]:
        if member["badness"]:
            yield member["badness"] - 1, f"{member['id']} is {member['health']}: {member['why']}"
        elif member["epoch"] not in (None, state["epoch"]):
            yield 0, f"{member['id']} uses epoch {member['epoch']}, not {state['epoch']}"


def _disks(known: Known, state: _State) -> _Alerts:
    for member in state["members"]:
        if member["disk"] and not member["badness"]:  # else another alert says why
            free = f"{member['free_bytes']} bytes are free"
            yield 1, f"{member['id']}: {member['disk']} ({free}); free disk space, or add a peer"


def _waits(known: Known, state: _State) -> _Alerts:
    if known.view is not None and known.view.topology.formed:
        status = {peer: sight.status for peer, sight in known.sights.items()}
        for text in waits(known.view, status | {known.peer: known.status}):
            yield 1, text


_RULES: Final[tuple[Callable[[Known, _State], _Alerts], ...]] = (
    _not_joined,
    _copies,
    _own_alerts,
    _members,
    _disks,
    _waits,
)
