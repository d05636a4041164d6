"""Integrity check: reads all pages of a store in a separate process.

LMDB reports some corrupt pages as errors; others fail an assertion, which aborts the process.
``python -m dstash.store.integrity DIR`` walks every tree; the caller checks how it ended.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import lmdb

from dstash.errors import StoreError

#: How the process ends at a corrupt page: with this status, or by an assertion or a fault.
_UNREADABLE: Final = 3
_FATAL: Final = (-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV)


def can_be_read(directory: Path) -> bool:
    """Whether all pages of the store in a directory can be read. It reads all of them.

    Raises:
        StoreError: the result is unknown, because the process ended for another reason.
    """
    command = [sys.executable, "-m", "dstash.store.integrity", os.fspath(directory)]
    done = subprocess.run(  # noqa: S603  # our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (0, _UNREADABLE, *_FATAL):
        raise StoreError(
            f"cannot check whether {directory} can be read: python -m dstash.store.integrity ended "
            f"with status {done.returncode}"
        )
    return done.returncode == 0


def _read(directory: str) -> None:
    with lmdb.open(directory, readonly=True, lock=False, create=False, max_dbs=8) as environment:
        with environment.begin() as transaction, transaction.cursor() as cursor:
            names = list(cursor.iternext(keys=True, values=False))
        for name in names:
            database = environment.open_db(name, create=False)
            with environment.begin(database) as transaction, transaction.cursor() as cursor:
                for _ in cursor.iternext(keys=True, values=True):
                    continue


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is a result here
    try:
        _read(sys.argv[1])
    except lmdb.Error:
        sys.exit(_UNREADABLE)
