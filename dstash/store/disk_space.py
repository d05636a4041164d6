"""The size of the memory map, and the room for the data file on its disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from dstash.limits import MIB
from dstash.store.directory import DATA_FILE

#: The errors of a full disk: no space at all, for this user, or for a file of this size.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FIRST_MAP: Final = 64 * MIB
_MAX_STEP: Final = 1024 * MIB
_PROBE_FILE: Final = "PROBE"


def map_size_for(data_file: Path) -> int:
    """Return the map size for opening a data file: at least twice the size of the file."""
    size = data_file.stat().st_size if data_file.exists() else 0
    map_size = _FIRST_MAP
    while map_size < size * 2:
        map_size = grown(map_size)
    return map_size


def grown(map_size: int) -> int:
    """Return the next larger size of a map that is full."""
    return map_size + min(map_size, _MAX_STEP)


def lacks_room(directory: Path, needed: int) -> bool:
    """Whether the data file cannot grow by ``needed`` bytes.

    LMDB reports a short write on a full disk as an I/O error. So a probe file is extended from the
    same length, which meets the same limits of the disk, the user, the process and the file size.
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
