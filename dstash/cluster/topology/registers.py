"""Whether a cluster serves registers: a feature level, which the topology states (T6).

It is raised by the first request for a register, when all members run a version that can vote.
From then on no member of an earlier version may join: it would merge registers by their versions
alone, and would not know the promises of the replicas that it takes the place of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import placement, survivors_lack_quorum
from dstash.errors import ChangeConflict

#: The name of this feature in ``Member.features``.
FEATURE: Final = "registers"
#: That of keeping the floors of registers when others are lowered.
FLOORS_FEATURE: Final = "register-floors"
#: That of streaming registers last in a topology change.
LAST_FEATURE: Final = "registers-last"


def unable(topology: Topology) -> list[str]:
    """Return the members whose version cannot vote on registers."""
    return [member.id for member in topology.members if FEATURE not in member.features.split()]


def with_registers(topology: Topology) -> Topology | None:
    """Return the topology of a cluster that serves registers; None if it cannot, or does so."""
    if topology.registers or unable(topology) or not topology.formed:
        return None
    return replace(topology, registers=True).next()


def check_lowering(topology: Topology) -> None:
    """Refuse to lower floors where a member would not keep those of registers (T7).

    Raises:
        ChangeConflict: a member of a cluster with registers runs an earlier version.
    """
    members = topology.members if topology.registers else ()
    old = [member.id for member in members if FLOORS_FEATURE not in member.features.split()]
    if old:
        raise ChangeConflict(
            f"{', '.join(old)} runs an earlier version, which would let versions of registers "
            "(indexes whose names begin with '@') go back; upgrade all members"
        )


def check_version(topology: Topology, peer: str, features: str) -> None:
    """Refuse a candidate of an earlier version in a cluster that serves registers.

    Raises:
        ChangeConflict: it is of an earlier version.
    """
    needed = {FEATURE, FLOORS_FEATURE} if topology.ceiling_epoch else {FEATURE}
    if topology.registers and not needed.issubset(features.split()):
        raise ChangeConflict(
            f"peer {peer!r} runs an earlier version, which does not know the registers of this "
            "cluster (indexes whose names begin with '@'); upgrade it"
        )


def streams_last(topology: Topology) -> bool:
    """Whether a topology change that begins streams registers last (T1).

    Replicas that stay and have to stream would vote while they take records that their promises
    forbid. So where there are any, and where a member runs an earlier version, registers rest
    during the whole change.
    """
    members = topology.members
    if not topology.registers or any(LAST_FEATURE not in m.features.split() for m in members):
        return False
    before = placement(topology.before(), topology.replicas)
    after = placement(topology.after(), topology.replicas)
    pairs = [(old, new) for old, new in set(zip(before, after, strict=True)) if old != new]
    gains = any(not set(old).issuperset(new) for old, new in pairs)
    return gains and not any(survivors_lack_quorum(old, new) for old, new in pairs)
