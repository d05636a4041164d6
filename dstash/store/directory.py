"""The directory of a store, which must be accessible and on a local disk.

On a network file system LMDB corrupts its data: a memory map is not coherent between machines, and
locks may be local to each machine.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from dstash.errors import CorruptStore, StoreError

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
#: Has the new data file of a compaction, until it is complete.
COMPACTING: Final = "compacting"
#: Has the new data file of a compaction from the moment it is complete until it is in its place.
COMPACTED: Final = "compacted"
#: Exists once LMDB has failed to read the store; contains the reason.
DAMAGED_FILE: Final = "DAMAGED"
#: Contains the fatal signal that ended the last process, if any; see ``crashes``.
FAULT_FILE: Final = "FAULT"
#: Contains the id of the boot of the machine while commits are not synced; see ``crashes``.
UNSYNCED_FILE: Final = "UNSYNCED"
#: Exists once the peer was removed from its cluster, until it is added again.
REMOVED_FILE: Final = "REMOVED"

#: What the names of set-aside stores begin with, and how many are kept: each may fill the disk.
_ASIDE: Final = "set-aside-"
MAX_SET_ASIDE: Final = 3

#: The modes of a data directory and of its files: data on disk is not encrypted.
DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600

MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "fuse.glusterfs"}
)
#: How the kernel escapes the characters that would end a field.
_ESCAPES: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


def make_directory(directory: Path) -> None:
    """Create a data directory unless it exists. Only this user can access a new directory.

    Raises:
        StoreError: it cannot be created or used.
    """
    try:
        if not directory.is_dir():
            directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            directory.chmod(DIRECTORY_MODE)  # the umask may have removed bits of the owner
    except OSError as error:
        raise StoreError(
            f"cannot create data directory {directory}: {error.strerror or error}; "
            "set data_dir to a directory that this user can write"
        ) from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(
            f"data directory {directory} cannot be read and written by this user; "
            "set data_dir to a directory that can be"
        )
    if kind := network_kind(directory):
        raise StoreError(
            f"data directory {directory} is on a network file system ({kind}); "
            "it must be on a local disk"
        )


def check_mark(directory: Path) -> None:
    """Check that no earlier process found the store of a directory corrupt.

    Raises:
        CorruptStore: it did.
    """
    mark = directory / DAMAGED_FILE
    if mark.exists():
        text = mark.read_text(errors="replace").strip()  # a full disk leaves it empty
        raise CorruptStore(
            f"{text or f'{directory}: LMDB could not read it'} (found by an earlier "
            f"process; remove {mark} to open the store anyway)"
        )


def shared_mode(directory: Path) -> str:
    """Return the octal mode of a directory that other users can access; empty if none can."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    return f"{mode:04o}" if mode & ~DIRECTORY_MODE & 0o777 else ""


def network_kind(directory: Path) -> str | None:
    """Return the type of the network file system of a directory; None on a local disk."""
    kind = kind_of_mount(directory)
    return kind if kind in _NETWORK else None


def kind_of_mount(directory: Path) -> str:
    """Return the type of the file system of a directory; empty if it is unknown."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or a sandbox
        return ""
    return _kind_of(directory.resolve(), lines)


def _kind_of(path: Path, lines: list[str]) -> str:
    """Return the type of the mount nearest to a path; of two at one point, the later."""
    mounts = {Path(_unescape(point)): kind for _, point, kind, *_ in map(str.split, lines)}
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def _unescape(field: str) -> str:
    for escape, char in _ESCAPES.items():
        field = field.replace(escape, char)
    return field


def sync_names(directory: Path) -> None:
    """Sync the directory entries of a new store: syncing a file does not sync its name."""
    for folder in (directory, directory.resolve().parent):
        if os.access(folder, os.R_OK):  # else it cannot be opened, so its creator has to sync it
            sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Sync the names in one directory."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_compacting(directory: Path) -> None:
    """Remove what a compaction left that did not end."""
    shutil.rmtree(directory / COMPACTING, ignore_errors=True)


def set_aside(directory: Path) -> tuple[Path, list[Path]]:
    """Move a closed store to a subdirectory, and delete the oldest of many such subdirectories.

    Returns:
        the new subdirectory, and the deleted ones.

    Raises:
        StoreError: the store cannot be moved.
    """
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = directory / f"{_ASIDE}{began}-{uuid.uuid4().hex[:4]}"
    try:
        aside.mkdir(DIRECTORY_MODE)
        # The lock file goes first: it must never be used with another data file.
        for name in (LOCK_FILE, DATA_FILE, DAMAGED_FILE, FAULT_FILE, UNSYNCED_FILE):
            if (directory / name).exists():
                (directory / name).rename(aside / name)
        older = [path for path in _asides(directory) if path != aside]
        dropped = older[: max(0, len(older) - MAX_SET_ASIDE + 1)]
        for path in dropped:
            shutil.rmtree(path)
    except OSError as error:
        raise StoreError(f"cannot set aside the store in {directory}: {error.strerror}") from None
    return aside, dropped


def set_aside_stores(directory: Path) -> dict[str, int]:
    """Return the names of the set-aside stores, oldest first, with their size in bytes."""
    return {path.name: _data_bytes(path) for path in _asides(directory)}


def _asides(directory: Path) -> list[Path]:
    found: dict[Path, float] = {}
    for path in directory.glob(f"{_ASIDE}*"):
        with suppress(FileNotFoundError):  # an operator deletes it now
            found[path] = path.stat().st_mtime
    return sorted(found, key=lambda path: (found[path], path.name))


def _data_bytes(directory: Path) -> int:
    try:
        return (directory / DATA_FILE).stat().st_size
    except FileNotFoundError:
        return 0


def mark_removed(directory: Path) -> None:
    """Note that the peer of a directory was removed from its cluster.

    Raises:
        StoreError: the directory cannot be written.
    """
    try:
        (directory / REMOVED_FILE).touch(FILE_MODE)
        sync_names(directory)
    except OSError as error:
        raise StoreError(f"cannot use {directory}: {error.strerror}") from None


def is_marked_removed(directory: Path) -> bool:
    """Whether the peer of a directory was removed from its cluster, and not added again."""
    return (directory / REMOVED_FILE).exists()


def unmark_removed(directory: Path) -> None:
    """Note that the peer of a directory was added to its cluster again.

    Raises:
        OSError: the directory cannot be written.
    """
    (directory / REMOVED_FILE).unlink(missing_ok=True)
