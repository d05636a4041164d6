"""Notes about fatal signals, for the next process on the store.

Access to a missing page of the data file raises SIGBUS, and some corrupt pages fail an assertion in
LMDB; either ends the process without a message. At that moment the signal and the stack can still
be written to a file that is already open.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

FAULT_FILE: Final = "FAULT"

#: Allocated in advance, because the disk may be full later.
_BYTES: Final = 8192
_PREFIX: Final = "Fatal Python error: "


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
