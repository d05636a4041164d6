"""How much room there is: for the map to grow in, and for the file on its disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from dstash.limits import MIB
from dstash.store.directory import DATA_FILE

#: How a disk says that it is full: altogether, for this user, or for a file of this size.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FIRST_MAP: Final = 64 * MIB
_LARGEST_STEP: Final = 1024 * MIB
_PROBE_FILE: Final = "PROBE"


def map_size_for(data_file: Path) -> int:
    """Return the size of the map to open a data file with: twice as large, and some."""
    size = data_file.stat().st_size if data_file.exists() else 0
    map_size = _FIRST_MAP
    while map_size < size * 2:
        map_size = grown(map_size)
    return map_size


def grown(map_size: int) -> int:
    """Return the next size of a map that is full."""
    return map_size + min(map_size, _LARGEST_STEP)


def lacks_room(directory: Path, needed: int) -> bool:
    """Whether the data file could not grow by so many bytes.

    LMDB calls a write that was cut short by a full disk an I/O error. So another file is made to
    grow from the same length: that meets limits of the disk, the user, the process and the file.
    """
    path = directory / _PROBE_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.lseek(handle, (directory / DATA_FILE).stat().st_size, os.SEEK_SET)
            while needed > 0:
                needed -= os.write(handle, bytes(min(needed, MIB)))
        finally:
            path.unlink()
            os.close(handle)
    except OSError as error:
        return error.errno in FULL
    return False
