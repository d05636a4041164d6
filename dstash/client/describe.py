"""The results of ``status`` and ``where``, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from dstash.cluster.topology.blockers import waits
from dstash.cluster.topology.copies import Copies, count_copies, missing_copies
from dstash.cluster.topology.drops import Drop
from dstash.cluster.topology.topology import Change
from dstash.cluster.topology.view import View
from dstash.store.record import partition_of
from dstash.version import stamp_milliseconds

#: How long partitions must have differed before the status reports it: the comparison that finds
#: a difference also repairs it, usually sooner.
DIFFERS_MS: Final = 10_000


def describe_cluster(view: View, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the cluster and its members.

    Args:
        view: of the cluster.
        answers: the status of each member that answered.
    """
    topology = view.topology
    change = topology.change
    candidates = sorted(view.alive - view.members.keys())
    copies = copies_of(view, answers)
    return {
        "cluster": topology.cluster,
        "cluster_id": topology.cluster_id,
        "epoch": topology.epoch,
        "replicas": topology.replicas,
        "min_peers": topology.min_peers,
        "formed": topology.formed,
        "partitions": topology.partitions,
        "change": None if change is None else describe_change(change),
        "waits": waits(view, answers),
        "candidates": candidates,
        "copies": len(topology.holders()),
        "quorum_lost": copies.lost,
        "lacking_replicas": copies.fewer,
        "alerts": [{"badness": badness, "text": text} for badness, text in copies.alerts()]
        + [{"badness": 1, "text": text} for text in missing_copies(topology, candidates)],
        "missing": describe_missing(answers),
        "drops": [describe_drop(drop) for drop in topology.drops],
        "differing": min(topology.partitions, sum(map(_differing, answers.values()))),
        "members": [
            asdict(member)
            | {"state": str(member.state), "seen": list(member.seen)}
            | {"alive": member.id in view.alive}
            | {"answers": member.id in answers}
            | dict(answers.get(member.id, {}))
            for member in topology.members
        ],
    }


def copies_of(view: View, answers: Mapping[str, Mapping[str, Any]]) -> Copies:
    """Return how many partitions lack replicas that serve; none before the cluster has formed.

    Args:
        view: of the cluster.
        answers: the status of each member that answered.
    """
    total = view.topology.partitions
    if not view.topology.formed:
        return Copies(0, 0, total)
    serving = {
        member.id
        for member in view.topology.members
        if member.id in view.alive
        and member.synced
        and not answers.get(member.id, {"why_not_ready": "no answer"}).get("why_not_ready")
    }
    return count_copies(
        (
            (len(peers), len(serving.intersection(peers)), count)
            for peers, count in Counter(view.readers).items()
        ),
        total,
    )


def describe_missing(answers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the writes that peers are known to have missed, by the hints that others hold.

    ``keys`` is a number of keys; ``partitions`` counts partitions that lack an unknown number more.
    """
    keys: Counter[str] = Counter()
    partitions: Counter[str] = Counter()
    for status in answers.values():
        maintenance = status.get("maintenance", {})
        dirty = maintenance.get("dirty_partitions", {})
        for peer, count in maintenance.get("hints", {}).items():
            keys[peer] += count - dirty.get(peer, 0)  # each dirty partition counts as a hint, too
            partitions[peer] = max(partitions[peer], dirty.get(peer, 0))
    return [
        {"peer": peer, "keys": keys[peer], "partitions": partitions[peer]}
        for peer in sorted(keys)
        if keys[peer] or partitions[peer]
    ]


def _differing(status: Mapping[str, Any]) -> int:
    """Return how many partitions of a peer have differed for ``DIFFERS_MS`` or longer.

    Peers of earlier versions do not report it.
    """
    maintenance = status.get("maintenance", {})
    return int(maintenance["differing"]) if maintenance.get("differing_ms", 0) >= DIFFERS_MS else 0


def describe_drop(drop: Drop) -> dict[str, Any]:
    """Return a drop that is not settled; ``removed`` once no member has its records on disk."""
    return {
        "index": drop.index,
        "prefix": drop.prefix,
        "since": stamp_milliseconds(drop.stamp),
        "removed": drop.swept,
    }


def describe_change(change: Change) -> dict[str, Any]:
    """Return a topology change."""
    lists = ("complete", "gone", "registers_complete")
    return asdict(change) | {name: list(getattr(change, name)) for name in lists}


def describe_place(view: View, encoded: bytes) -> dict[str, Any]:
    """Return the partition and the replicas of an encoded key."""
    partition = partition_of(encoded)
    return {
        "partition": partition,
        "replicas": [
            {
                "id": peer,
                "address": view.members[peer].address,
                "zone": view.members[peer].zone,
                "alive": peer in view.alive,
            }
            for peer in view.readers[partition]
        ],
    }
