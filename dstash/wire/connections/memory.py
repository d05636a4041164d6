"""The memory of this process, as the limits of its connections count it."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

_PAGE_BYTES: Final = resource.getpagesize()


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps free blocks between used blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # only glibc has it
        trim(0)


class Memory:
    """The private memory of this process, readable even without free descriptors."""

    def __init__(self) -> None:
        self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115  # kept open
        self._fd = self._file.fileno()

    def private(self) -> int:
        """Return the bytes of resident memory that map no file."""
        _, resident, shared, _ = os.pread(self._fd, 200, 0).split(b" ", 3)
        return (int(resident) - int(shared)) * _PAGE_BYTES

    def close(self) -> None:
        """Release the descriptor."""
        self._file.close()
