"""Where a store is: the machine, and whether several of its processes may map the files.

A client reads the store of a peer itself only on the machine of the peer. There, both see the same
pages in memory, and the locks of LMDB hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from dstash.store.crashes import BOOT_ID
from dstash.store.directory import kind_of_mount

MACHINE_ID: Final = Path("/etc/machine-id")

#: File systems of one machine, whose maps all processes share.
_LOCAL: Final = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs"}
)


class Machine(NamedTuple):
    """One boot of one machine. ``identity`` is empty if the machine has none."""

    boot: str
    identity: str

    def is_same(self, other: Machine) -> bool:
        """Whether both are surely one boot of one machine."""
        known = self.identity and other.identity
        return (
            bool(self.boot)
            and self.boot == other.boot
            and (not known or self.identity == other.identity)
        )


class StorePlace(NamedTuple):
    """Where the store of a peer is, as the peer tells clients."""

    machine: Machine
    directory: str
    store_id: str

    def fields(self) -> list[Any]:
        """Return the place as plain values."""
        return [*self.machine, self.directory, self.store_id]

    @classmethod
    def of(cls, fields: list[Any]) -> StorePlace | None:
        """Return the place with these values; None if there is none, or they are invalid."""
        match fields:
            case [str() as boot, str() as identity, str() as directory, str() as store_id, *_]:
                return cls(Machine(boot, identity), directory, store_id)
        return None


def this_machine() -> Machine:
    """Return the machine of this process; its ``boot`` is empty if the kernel does not tell it."""
    return Machine(_text(BOOT_ID), _text(MACHINE_ID))


def why_not_shared(directory: Path) -> str:
    """Return why the store in a directory cannot be read next to its peer; empty if it can."""
    if not this_machine().boot:
        return f"this machine does not tell which boot it runs ({BOOT_ID})"
    kind = kind_of_mount(directory)
    if kind not in _LOCAL:
        known = ", ".join(sorted(_LOCAL))
        return (
            f"{directory} is on the file system {kind or 'unknown'!r}; known as local are {known}"
        )
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
