"""The steps of a drop, as pure functions from one topology to the next; see ``drops.py``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from dstash.cluster.topology.drops import FEATURE, Drop
from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict, UsageError
from dstash.limits import MAX_KEY_BYTES, check_index
from dstash.version import Stamp

#: The most entries of a topology: each request that carries the topology carries them.
MAX_DROPS: Final = 64


def with_drop(topology: Topology, index: str, prefix: bytes, stamp: Stamp) -> Topology:
    """Return the topology in which records of an index are dropped.

    Args:
        topology: the present one.
        index: its name.
        prefix: of the encoded keys; empty for all.
        stamp: no write quorum holds a record of a later stamp.

    Raises:
        LimitError, UsageError: index or prefix are not allowed.
        ChangeConflict: a member runs an earlier version, or too many drops are not settled yet.
    """
    check_index(index)
    if len(prefix) > MAX_KEY_BYTES:
        raise UsageError(
            f"the prefix has {len(prefix)} bytes; allowed are up to {MAX_KEY_BYTES} bytes"
        )
    if topology.registers and index.startswith("@"):
        raise UsageError(f"index {index!r} has registers, so it cannot be dropped; delete its keys")
    if not topology.formed:
        raise ChangeConflict("the cluster has not formed yet; there is nothing to drop")
    old = [member.id for member in topology.members if FEATURE not in member.features.split()]
    if old:
        raise ChangeConflict(
            f"{', '.join(old)} runs an earlier version, which cannot drop; upgrade all members"
        )
    begun, text = topology.next(), prefix.hex()
    new = Drop(index, text, stamp, begun.epoch)
    # Another member may have used a later stamp. This drop takes the place of those within it.
    alike = [
        drop.stamp
        for drop in topology.drops
        if drop.includes(index, text) or new.includes(drop.index, drop.prefix)
    ]
    new = replace(new, stamp=max([stamp, *alike]))
    kept = [drop for drop in topology.drops if not new.includes(drop.index, drop.prefix)]
    if len(kept) >= MAX_DROPS:
        raise ChangeConflict(
            f"{len(kept)} drops are not settled yet; allowed are {MAX_DROPS}. They are settled "
            "about a minute after all members are up and have removed the records"
        )
    return replace(begun, drops=(*kept, new))


def with_swept(topology: Topology, swept: Collection[Drop]) -> Topology | None:
    """Return the topology in which all members have removed the records of some drops.

    Args:
        topology: the present one. It may be of another history, with other drops of these numbers.
        swept: the drops.
    """
    known = {drop.identity for drop in swept}
    drops = tuple(
        replace(drop, swept=True) if drop.identity in known else drop for drop in topology.drops
    )
    return None if drops == topology.drops else replace(topology, drops=drops).next()


def without_settled(
    topology: Topology, settled: Collection[Drop], members: Collection[str]
) -> Topology | None:
    """Return the topology without some drops, whose stamp the horizons of all members have passed.

    Args:
        topology: the present one, as for ``with_swept``.
        settled: the drops.
        members: those that have confirmed it. None may have joined or lost its data since.
    """
    confirmed = all(member.id in members and member.synced for member in topology.members)
    known = {drop.identity for drop in settled}
    kept = tuple(drop for drop in topology.drops if drop.identity not in known)
    if not confirmed or topology.change is not None or kept == topology.drops:
        return None
    return replace(topology, drops=kept).next()
