"""The directory of a store: it must be ours, and on a disk of this machine.

On a network file system LMDB corrupts: a memory map is not coherent between machines, and locks
may be local to each of them.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Final

from dstash.errors import StoreError
from dstash.store.faults import FAULT_FILE

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
#: There once LMDB could not read the store any more: says why.
DAMAGED_FILE: Final = "DAMAGED"

MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "fuse.glusterfs"}
)
#: How the kernel writes what would end a field.
_ESCAPES: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


def make_directory(directory: Path) -> None:
    """Make a data directory unless it is there.

    Raises:
        StoreError: it cannot be made or used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make data directory {directory}: {error.strerror or error}"
        ) from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"data directory {directory} cannot be read and written by this user")
    if kind := network_kind(directory):
        raise StoreError(
            f"data directory {directory} is on a network file system ({kind}); "
            "allowed is a disk of this machine"
        )


def network_kind(directory: Path) -> str | None:
    """Return the kind of network file system that a directory is on; None when on none."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or a sandbox: nobody can tell
        return None
    kind = _kind_of(directory.resolve(), lines)
    return kind if kind in _NETWORK else None


def _kind_of(path: Path, lines: list[str]) -> str:
    """Return the kind of the mount that is nearest above a path; of two at one place the later."""
    mounts = {Path(_plain(place)): kind for _, place, kind, *_ in map(str.split, lines)}
    return next((mounts[one] for one in (path, *path.parents) if one in mounts), "")


def _plain(field: str) -> str:
    for escape, char in _ESCAPES.items():
        field = field.replace(escape, char)
    return field


def sync_names(directory: Path) -> None:
    """Put the names of a new store's files on disk: syncing a file does not sync its name."""
    for folder in (directory, directory.resolve().parent):
        if not os.access(folder, os.R_OK):
            continue  # nothing can be opened there, so whoever made it has to care
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_aside(directory: Path) -> Path:
    """Move a closed store out of the way, within its directory; returns where it is now."""
    aside = directory / f"set-aside-{uuid.uuid4().hex[:8]}"
    try:
        aside.mkdir()
        for name in (DATA_FILE, LOCK_FILE, DAMAGED_FILE, FAULT_FILE):
            if (directory / name).exists():
                (directory / name).rename(aside / name)
    except OSError as error:
        raise StoreError(f"cannot set aside the store in {directory}: {error.strerror}") from None
    return aside
