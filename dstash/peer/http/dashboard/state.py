"""The state of the cluster for the dashboard: a pure function of what one peer knows.

Every peer can describe the whole cluster in any state.
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

#: A peer that has not answered for this long is silent.
_SILENT_AFTER_MS: Final = 3000
#: A rate is the mean of this many samples.
_RATE_SAMPLES: Final = 3
#: With more replica sets than this, only the first replica of each partition is reported.
_MAX_SETS: Final = 500

#: How bad each health is: 2 the peer is lost, 1 it serves no reads; any other health is 0.
_BADNESS: Final = {"down": 2, "silent": 2, "not ready": 1, "streaming": 1}


class Known(NamedTuple):
    """The knowledge of one peer at one moment (``now``: milliseconds since 1970).

    ``status`` and ``samples`` are the peer's own.
    """

    peer: str
    cluster: str
    now: int
    view: View | None
    status: Mapping[str, Any]
    samples: Sequence[Sample]
    sights: Mapping[str, Sight]


def describe(known: Known) -> dict[str, Any]:
    """Return the state of the cluster as plain data; ``alerts.py`` finds what is wrong in it."""
    topology = known.view.topology if known.view else None
    members = [_member(known, member) for member in topology.members] if topology else []
    lost = {member["id"] for member in members if member["badness"]}  # they serve no reads
    sets = _sets(known.view, lost) if known.view and known.view.topology.formed else []
    return {
        "peer": known.peer,
        "cluster": known.cluster,
        "now": known.now,
        "version": known.status["version"],
        "epoch": topology.epoch if topology else 0,
        "formed": bool(topology and topology.formed),
        "replicas": topology.replicas if topology else 0,
        "copies": len(topology.holders()) if topology else 0,
        "partitions": topology.partitions if topology else 0,
        "members": members,
        "sets": sets,
        "change": _change(topology, members) if topology else None,
        "load": load(known, _RATE_SAMPLES + 5),
    }


def unknown(peer: str, cluster: str, quiet: float) -> dict[str, Any]:
    """Return the state to show when the peer's loop does not answer; ``quiet`` in seconds."""
    text = (
        f"peer {peer} hangs: its event loop has not run for {quiet:.0f} s; check its disk and log"
    )
    empty: dict[str, Any] = dict.fromkeys(("now", "epoch", "replicas", "copies", "partitions"), 0)
    empty |= {"members": [], "sets": [], "change": None, "formed": False, "version": ""}
    alert = {"badness": 2, "text": text}
    return empty | {"peer": peer, "cluster": cluster, "load": None, "alerts": [alert]}


def load(known: Known, seconds: int) -> dict[str, list[int]]:
    """Return the load of the cluster: a column for each figure, a row for each second.

    Requests and keys are summed over the peers. A written key counts once, regardless of the
    number of replicas. ``p50`` is that of the median peer, ``p99`` that of the slowest, because
    percentiles cannot be added. The last two seconds are left out, because not all peers have
    reported them yet.
    """
    end = known.now // 1000 - 2
    begin = end - seconds
    copies = min(known.view.topology.replicas, len(known.view.members)) if known.view else 1
    by_second: dict[int, list[Sample]] = {}
    for samples in (known.samples, *(sight.samples for sight in known.sights.values())):
        for sample in samples:
            if begin < sample.at // 1000 <= end:
                by_second.setdefault(sample.at // 1000, []).append(sample)
    rows = [(second, *_combined(by_second[second], copies)) for second in sorted(by_second)]
    names = ("at", *Sample._fields[1:])
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _combined(samples: Sequence[Sample], copies: int) -> list[int]:
    columns = list(zip(*(sample[1:] for sample in samples), strict=True))
    reads, writes, read_keys, written_keys = map(sum, columns[:4])
    handling_p50, handling_p99, commit_p50, commit_p99 = columns[4:]
    return [
        *(reads, round(writes / copies), read_keys, round(written_keys / copies)),
        *(_typical(handling_p50), max(handling_p99), _typical(commit_p50), max(commit_p99)),
    ]


def _typical(values: Iterable[int]) -> int:
    busy = [value for value in values if value]
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
    """Return the health of a member, in one or two words, and the reason."""
    is_me = member.id == known.peer
    if not is_me and known.view is not None and member.id not in known.view.alive:
        return "down", "its session lock is free: its process has ended or cannot be reached"
    if sight.is_gone:
        return "down", f"no connection to {member.address} from here; it still holds its lock"
    if not sight.heard:
        return ("silent", sight.alert) if sight.alert else ("asking", "it has not answered yet")
    if known.now - sight.heard > _SILENT_AFTER_MS:
        return "silent", f"no answer for {(known.now - sight.heard) // 1000} s"
    if member.state is not State.ACTIVE:
        return str(member.state), "a topology change is running"
    if not member.synced:
        return "streaming", "its store is new or too old; it streams its partitions from replicas"
    why = str(sight.status.get("why_not_ready") or "")
    return ("not ready", why) if why else ("ok", "")


def _missed(known: Known, peer: str) -> int:
    """Return the number of keys for which other peers keep hints for a peer."""
    statuses = [known.status, *(sight.status for sight in known.sights.values())]
    return sum(status.get("maintenance", {}).get("hints", {}).get(peer, 0) for status in statuses)


def _rates(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the load per second, as the mean of the last samples, and their highest p99."""
    recent = list(samples)[-_RATE_SAMPLES:]
    count = len(recent) or 1
    names = ("reads", "writes", "read_keys", "written_keys")
    means = {name: round(sum(getattr(row, name) for row in recent) / count) for name in names}
    peaks = ("handling_p99", "commit_p99")
    return means | {name: max((getattr(row, name) for row in recent), default=0) for name in peaks}


# -- partitions


def _sets(view: View, lost: set[str]) -> list[dict[str, Any]]:
    """Return the replica sets that reads use, and the number of partitions of each.

    ``peers`` is in rank order. ``moving`` partitions get another replica set by the topology
    change. ``up`` replicas serve.
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
    """Return the sets of a large cluster merged by their first peer: more cannot be drawn."""
    if len(sets) <= _MAX_SETS:
        return list(sets)
    firsts: dict[str, dict[str, Any]] = {}
    for replica_set in sets:
        peer = replica_set["peers"][0]
        empty = {"peers": [peer], "partitions": 0, "moving": 0, "up": 1}
        first = firsts.setdefault(peer, empty)
        first["partitions"] += replica_set["partitions"]
        first["moving"] += replica_set["moving"]
    return list(firsts.values())


def _change(topology: Topology, members: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    change = topology.change
    if change is None:
        return None
    by_id = {member["id"]: member for member in members}
    return {
        "paused": change.paused,
        "switched": change.switched,
        "rate": change.rate,
        "joining": [member.id for member in topology.members if member.state is State.JOINING],
        "leaving": [member.id for member in topology.members if member.state is State.LEAVING],
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
    streamed = maintenance.get("streamed_bytes", 0)
    return {
        "peer": peer,
        "partitions": total,
        "done": total if is_complete else total - min(left, total),
        "records": maintenance.get("streamed_records", 0),
        "bytes": streamed,
        "rate": round(streamed / seconds) if seconds else 0,
    }
