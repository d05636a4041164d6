"""Notes for the next process on a store: about fatal signals, and about commits not yet synced.

Access to a missing page of the data file raises SIGBUS, and some corrupt pages fail an assertion in
LMDB; either ends the process without a message. At that moment the signal and the stack can still
be written to a file that is already open.

What a process has written survives its end, but not the end of its machine: then the kernel may
have written some pages and not others. So a store that does not sync each commit notes on which
boot of its machine it is written to. The kernel has another id after each boot.
"""

from __future__ import annotations

import faulthandler
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dstash.store.directory import FAULT_FILE, FILE_MODE, UNSYNCED_FILE, sync_names

#: Allocated in advance, because the disk may be full later.
_BYTES: Final = 8192
_PREFIX: Final = "Fatal Python error: "

#: The note has one size, with blanks once all is synced, so that it fits on a full disk.
_NOTE_BYTES: Final = 64

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def last_fault(directory: Path) -> str:
    """Return the fault that ended the last process, such as ``Bus error``; empty for none."""
    try:
        content = (directory / FAULT_FILE).read_bytes()
    except FileNotFoundError:
        return ""
    lines = content.strip(b"\0\n").decode(errors="replace").splitlines()
    return lines[0].removeprefix(_PREFIX) if lines else ""


def note_faults(directory: Path) -> Callable[[], None]:
    """Record fatal signals of this process in a directory; returns a function that ends it.

    Raises:
        OSError: the file cannot be created.
    """
    path = directory / FAULT_FILE
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, _BYTES)
        faulthandler.enable(handle, all_threads=False)
    except OSError:
        os.close(handle)
        raise

    def end() -> None:
        faulthandler.disable()
        os.close(handle)
        path.unlink(missing_ok=True)

    return end


def boot_id() -> str:
    """Return the id of this boot of the machine; a new one each time if the kernel tells none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def may_lack_writes(directory: Path) -> bool:
    """Whether the machine of a store stopped before all commits were synced."""
    try:
        note = (directory / UNSYNCED_FILE).read_bytes()
    except FileNotFoundError:
        return False
    noted = note.decode(errors="replace").strip()
    return bool(noted) and noted != boot_id()


def note_unsynced(directory: Path) -> None:
    """Note durably that commits are not synced from now on."""
    _write(directory, boot_id())


def note_synced(directory: Path) -> None:
    """Note durably that all commits are synced."""
    if (directory / UNSYNCED_FILE).exists():
        _write(directory, "")


def _write(directory: Path, text: str) -> None:
    file = directory / UNSYNCED_FILE
    is_new = not file.exists()
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        os.pwrite(handle, text.ljust(_NOTE_BYTES).encode(), 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    if is_new:
        sync_names(directory)
