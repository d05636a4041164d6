"""Whether a cluster serves registers: a feature level, which the topology states (T6).

It is raised by the first request for a register, when all members run a version that can vote.
From then on no member of an earlier version may join: it would merge registers by their versions
alone, and would not know the promises of the replicas that it takes the place of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict

#: The name of this feature in ``Member.features``.
FEATURE: Final = "registers"


def unable(topology: Topology) -> list[str]:
    """Return the members whose version cannot vote on registers."""
    return [member.id for member in topology.members if FEATURE not in member.features.split()]


def with_registers(topology: Topology) -> Topology | None:
    """Return the topology of a cluster that serves registers; None if it cannot, or does so."""
    if topology.registers or unable(topology) or not topology.formed:
        return None
    return replace(topology, registers=True).next()


def check_lowering(topology: Topology) -> None:
    """Refuse to lower floors: fencing tokens of registers would go back (T7).

    Raises:
        ChangeConflict: the cluster serves registers.
    """
    if topology.registers:
        raise ChangeConflict(
            "floors cannot be lowered in a cluster with registers (indexes whose names begin with "
            "'@'): their versions would go back"
        )


def check_version(topology: Topology, peer: str, features: str) -> None:
    """Refuse a candidate of an earlier version in a cluster that serves registers.

    Raises:
        ChangeConflict: it is of an earlier version.
    """
    if topology.registers and FEATURE not in features.split():
        raise ChangeConflict(
            f"peer {peer!r} runs an earlier version, which does not know the registers of this "
            "cluster (indexes whose names begin with '@'); upgrade it"
        )
