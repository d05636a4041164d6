"""The directory of a store, which must be accessible and on a local disk.

On a network file system LMDB corrupts its data: a memory map is not coherent between machines, and
locks may be local to each machine.
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
#: Exists once LMDB has failed to read the store; contains the reason.
DAMAGED_FILE: Final = "DAMAGED"

MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "fuse.glusterfs"}
)
#: How the kernel escapes the characters that would end a field.
_ESCAPES: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


def make_directory(directory: Path) -> None:
    """Create a data directory unless it exists.

    Raises:
        StoreError: it cannot be created or used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create data directory {directory}: {error.strerror or error}"
        ) from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"data directory {directory} cannot be read and written by this user")
    if kind := network_kind(directory):
        raise StoreError(
            f"data directory {directory} is on a network file system ({kind}); "
            "it must be on a local disk"
        )


def network_kind(directory: Path) -> str | None:
    """Return the type of the network file system of a directory; None on a local disk."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or a sandbox: the type is unknown
        return None
    kind = _kind_of(directory.resolve(), lines)
    return kind if kind in _NETWORK else None


def _kind_of(path: Path, lines: list[str]) -> str:
    """Return the type of the mount nearest to a path; of two at one mount point, the later."""
    mounts = {Path(_unescape(point)): kind for _, point, kind, *_ in map(str.split, lines)}
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def _unescape(field: str) -> str:
    for escape, char in _ESCAPES.items():
        field = field.replace(escape, char)
    return field


def sync_names(directory: Path) -> None:
    """Sync the directory entries of a new store: syncing a file does not sync its name."""
    for folder in (directory, directory.resolve().parent):
        if not os.access(folder, os.R_OK):
            continue  # it cannot be opened, so its creator has to sync it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_aside(directory: Path) -> Path:
    """Move a closed store to a subdirectory; returns the subdirectory."""
    aside = directory / f"set-aside-{uuid.uuid4().hex[:8]}"
    try:
        aside.mkdir()
        for name in (DATA_FILE, LOCK_FILE, DAMAGED_FILE, FAULT_FILE):
            if (directory / name).exists():
                (directory / name).rename(aside / name)
    except OSError as error:
        raise StoreError(f"cannot set aside the store in {directory}: {error.strerror}") from None
    return aside
