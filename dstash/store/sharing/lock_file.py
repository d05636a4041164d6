"""LMDB's lock file, which clients that read at a peer keep open while the peer restarts.

LMDB trusts the number of the last transaction in it, unless no process has the file open. If the
data file was replaced meanwhile, by a copy or a compaction, that number is not the one of the data
file, and the next commit would overwrite pages in use. Such a lock file is replaced, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import lmdb

from dstash.store.directory import DATA_FILE, LOCK_FILE
from dstash.store.lmdb_errors import translated

#: Where a lock file has the number of the last transaction, on Linux. Elsewhere the file never
#: fits, and is replaced each time.
_LAST: Final = slice(48, 56)


def drop_unfit_lock_file(directory: Path) -> None:
    """Remove a lock file that does not fit the data file; before LMDB opens it.

    Processes that have it open keep the old one, and read nothing any more: see ``silence``.

    Raises:
        StoreError: it cannot be removed.
    """
    with translated(directory):
        if (directory / LOCK_FILE).exists() and not _fits(directory):
            (directory / LOCK_FILE).unlink()


def _fits(directory: Path) -> bool:
    """Whether the last transaction is the same in both files."""
    lock = (directory / LOCK_FILE).read_bytes()
    if not (directory / DATA_FILE).exists():
        return False
    try:
        with lmdb.open(os.fspath(directory), readonly=True, lock=False, create=False) as data:
            last = int(data.info()["last_txnid"])
    except lmdb.Error:
        return False
    return int.from_bytes(lock[_LAST], sys.byteorder) == last
