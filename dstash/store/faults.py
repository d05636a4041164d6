"""Notes of a process that ends by a fault, for the next one.

A page of the data file that is not there is a SIGBUS, and of some damaged pages LMDB asserts that
they cannot be so: the process ends without a word. What can be written at that moment is the
signal and where it came, to a file that is open already.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

FAULT_FILE: Final = "FAULT"

#: Allocated before it is needed: the disk may be full then.
_BYTES: Final = 8192
_PREFIX: Final = "Fatal Python error: "


def last_fault(directory: Path) -> str:
    """Return by what fault the last process ended, such as ``Bus error``; empty for none."""
    try:
        content = (directory / FAULT_FILE).read_bytes()
    except FileNotFoundError:
        return ""
    lines = content.strip(b"\0\n").decode(errors="replace").splitlines()
    return lines[0].removeprefix(_PREFIX) if lines else ""


def note_faults(directory: Path) -> Callable[[], None]:
    """Have a fault of this process noted in a directory; returns what ends that.

    Raises:
        OSError: the file cannot be made.
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
