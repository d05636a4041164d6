"""The allocator of the C library, set for a peer that receives and sends large messages.

By default glibc returns the end of the heap to the system when a large message is freed, and takes
it back for the next message: every page of every message is a page fault, which takes as long as to
copy the page.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: Options of ``mallopt`` (malloc.h).
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3

#: Free bytes at the end of a heap that are kept, and bytes that a heap grows by.
_KEPT_BYTES: Final = 16 * 1024 * 1024
_GROWTH_BYTES: Final = 1024 * 1024
#: Larger blocks are not on a heap. Most messages are smaller: see ``REPLY_BYTES`` of the client.
_LARGEST_BYTES: Final = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Keep some freed memory for the next message; without glibc, do nothing.

    ``give_back_memory`` of ``wire/connections/memory.py`` still returns it after a connection was
    cut.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    # glibc adapts none of these limits once one of them is set, so all are.
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TOP_PAD, _GROWTH_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
