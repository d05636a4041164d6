"""What the dashboard shows, as plain data: a pure function of what one peer knows.

Every peer can say it for the whole cluster, in whatever state that is.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dstash.cluster.topology.topology import Member, State, Topology
from dstash.cluster.topology.transitions import incoming
from dstash.cluster.topology.view import View
from dstash.peer.telemetry.history import Sample
from dstash.peer.telemetry.observer import Sight

#: Who has not answered for so long (milliseconds) is silent.
_SILENT_MS: Final = 3000
#: A rate is a mean over so many samples.
_RECENT: Final = 3
#: With more replica sets than this, only the first replica of each partition is told.
_MOST_SETS: Final = 500

#: How a member does, and how bad that is: 2 it is lost to the cluster, 1 it is not whole, 0 well.
_BADNESS: Final = {"down": 2, "silent": 2, "not ready": 1, "streaming": 1}


class Known(NamedTuple):
    """All that one peer knows at one moment (``now``: milliseconds since 1970).

    ``status`` and ``samples`` are its own.
    """

    peer: str
    cluster: str
    now: int
    view: View | None
    status: Mapping[str, Any]
    samples: Sequence[Sample]
    sights: Mapping[str, Sight]


def describe(known: Known) -> dict[str, Any]:
    """Return the cluster; see ``troubles.py`` for what is wrong with it."""
    topology = known.view.topology if known.view else None
    members = [_member(known, one) for one in topology.members] if topology else []
    lost = {one["id"] for one in members if one["badness"]}  # they answer no reads
    sets = _sets(known.view, lost) if known.view and known.view.topology.formed else []
    return {
        "peer": known.peer,
        "cluster": known.cluster,
        "now": known.now,
        "version": known.status["version"],
        "epoch": topology.epoch if topology else 0,
        "formed": bool(topology and topology.formed),
        "replicas": topology.replicas if topology else 0,
        "partitions": topology.partitions if topology else 0,
        "members": members,
        "sets": sets,
        "change": _change(topology, members) if topology else None,
        "load": load(known, _RECENT + 5),
    }


def unknown(peer: str, cluster: str, quiet: float) -> dict[str, Any]:
    """Return what a page can say when the peer's loop does not answer; ``quiet`` in seconds."""
    text = f"peer {peer} hangs: its loop has not turned for {quiet:.0f} s; look at its disk and log"
    nothing: dict[str, Any] = dict.fromkeys(("now", "epoch", "replicas", "partitions"), 0)
    nothing |= {"members": [], "sets": [], "change": None, "formed": False, "version": ""}
    alert = {"badness": 2, "text": text}
    return nothing | {"peer": peer, "cluster": cluster, "load": None, "alerts": [alert]}


def load(known: Known, seconds: int) -> dict[str, list[int]]:
    """Return the load of the cluster: a column for each figure, a row for each second.

    Requests and keys are summed over the peers, and a key that was written counts once however
    many replicas it has. ``p50`` is that of the median peer, ``p99`` that of the slowest:
    percentiles cannot be added. The last two seconds are left out, for not all have told of them.
    """
    end = known.now // 1000 - 2
    begin = end - seconds
    copies = min(known.view.topology.replicas, len(known.view.members)) if known.view else 1
    by_second: dict[int, list[Sample]] = {}
    for samples in (known.samples, *(sight.samples for sight in known.sights.values())):
        for one in samples:
            if begin < one.at // 1000 <= end:
                by_second.setdefault(one.at // 1000, []).append(one)
    rows = [(second, *_together(by_second[second], copies)) for second in sorted(by_second)]
    names = ("at", *Sample._fields[1:])
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _together(samples: Sequence[Sample], copies: int) -> list[int]:
    columns = list(zip(*(one[1:] for one in samples), strict=True))
    reads, writes, read_keys, written_keys = map(sum, columns[:4])
    handling_p50, handling_p99, commit_p50, commit_p99 = columns[4:]
    return [
        *(reads, round(writes / copies), read_keys, round(written_keys / copies)),
        *(_typical(handling_p50), max(handling_p99), _typical(commit_p50), max(commit_p99)),
    ]


def _typical(values: Iterable[int]) -> int:
    busy = [one for one in values if one]
    return round(statistics.median(busy)) if busy else 0


# -- members


def _member(known: Known, member: Member) -> dict[str, Any]:
    sight = _sight(known, member.id)
    status = sight.status
    health, why = _health(known, member, sight)
    owned = known.view.owned_by(member.id) if known.view else ()
    return {
        "id": member.id,
        "zone": member.zone,
        "address": member.address.removeprefix("tcp://"),
        "state": str(member.state),
        "health": health,
        "badness": _BADNESS.get(health, 0),
        "why": why,
        "held": len(owned),
        "lag": _missed(known, member.id),
        "rates": _rates(sight.samples),
        "maintenance": status.get("maintenance", {}),
        **{name: status.get(name) for name in _SHOWN},
    }


_SHOWN: Final = (
    *("epoch", "records", "used_bytes", "map_bytes", "free_bytes", "waiting_bytes"),
    *("uptime_s", "version", "disk"),
)


def _sight(known: Known, peer: str) -> Sight:
    if peer != known.peer:
        return known.sights.get(peer, Sight())
    own = Sight(dict(known.status), heard=known.now)
    own.samples.extend(known.samples)
    return own


def _health(known: Known, member: Member, sight: Sight) -> tuple[str, str]:
    """Return how a member does, in a word or two, and why."""
    is_me = member.id == known.peer
    if not is_me and known.view is not None and member.id not in known.view.alive:
        return "down", "its process has ended, or nobody reaches it: its lock is free"
    if sight.is_gone:
        return "down", f"no connection to {member.address} from here; its lock is still held"
    if not sight.heard:
        return ("silent", sight.alert) if sight.alert else ("asking", "not heard of yet")
    if known.now - sight.heard > _SILENT_MS:
        return "silent", f"no answer for {(known.now - sight.heard) // 1000} s"
    if member.state is not State.ACTIVE:
        return str(member.state), "a change of placement is under way"
    if not member.synced:
        return "streaming", "its store is new or too old, and is filled from other replicas"
    why = str(sight.status.get("why_not_ready") or "")
    return ("not ready", why) if why else ("ok", "")


def _missed(known: Known, peer: str) -> int:
    """Return how many keys the others keep hints of for a peer: how far it is behind."""
    said = [known.status, *(sight.status for sight in known.sights.values())]
    return sum(one.get("maintenance", {}).get("hints", {}).get(peer, 0) for one in said)


def _rates(samples: Sequence[Sample]) -> dict[str, int]:
    """Return what went on during the last moments, a second."""
    recent = list(samples)[-_RECENT:]
    count = len(recent) or 1
    names = ("reads", "writes", "read_keys", "written_keys")
    means = {name: round(sum(getattr(one, name) for one in recent) / count) for name in names}
    peaks = ("handling_p99", "commit_p99")
    return means | {name: max((getattr(one, name) for one in recent), default=0) for name in peaks}


# -- partitions


def _sets(view: View, lost: set[str]) -> list[dict[str, Any]]:
    """Return the replica sets that reads use, by rank, with how many partitions each has.

    ``moving`` of them have others after the change under way. ``up`` replicas are there.
    """
    moved = Counter(
        old for old, new in zip(view.readers, view.writers, strict=True) if set(old) != set(new)
    )
    return [
        {
            "peers": list(peers),
            "partitions": count,
            "moving": moved[peers],
            "up": len([peer for peer in peers if peer not in lost]),
        }
        for peers, count in sorted(Counter(view.readers).items())
    ]


def shorten(sets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the sets of a large cluster by their first peer alone: more cannot be drawn."""
    if len(sets) <= _MOST_SETS:
        return list(sets)
    firsts: dict[str, dict[str, Any]] = {}
    for one in sets:
        peer = one["peers"][0]
        nothing = {"peers": [peer], "partitions": 0, "moving": 0, "up": 1}
        first = firsts.setdefault(peer, nothing)
        first["partitions"] += one["partitions"]
        first["moving"] += one["moving"]
    return list(firsts.values())


def _change(topology: Topology, members: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    change = topology.change
    if change is None:
        return None
    by_id = {one["id"]: one for one in members}
    return {
        "paused": change.paused,
        "switched": change.switched,
        "rate": change.rate,
        "joining": [one.id for one in topology.members if one.state is State.JOINING],
        "leaving": [one.id for one in topology.members if one.state is State.LEAVING],
        "transfers": [
            _transfer(peer, len(gained), by_id[peer]["maintenance"], peer in change.complete)
            for peer, gained in sorted(incoming(topology).items())
        ],
    }


def _transfer(
    peer: str, total: int, maintenance: Mapping[str, Any], is_complete: bool
) -> dict[str, Any]:
    left = maintenance.get("streaming", 0) if maintenance.get("streaming_of") else total
    seconds = maintenance.get("streaming_ms", 0) / 1000
    taken = maintenance.get("streamed_bytes", 0)
    return {
        "peer": peer,
        "partitions": total,
        "done": total if is_complete else total - min(left, total),
        "records": maintenance.get("streamed_records", 0),
        "bytes": taken,
        "rate": round(taken / seconds) if seconds else 0,
    }
