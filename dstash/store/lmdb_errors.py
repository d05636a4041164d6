"""LMDB's errors in dstash's words, at this one place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from dstash.errors import CorruptStore, DiskFull, StoreError, StoreFailed
from dstash.store.disk_space import FULL

_CORRUPT: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.BadTxnError,  # what a page that is none of a tree does to the transaction that meets it
)


@contextmanager
def translated(
    directory: Path,
    on_failure: Callable[[str], None] = lambda reason: None,
    is_full: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Turn the errors of LMDB, and of files beside it, into dstash's. A full map passes through.

    Args:
        directory: of the store, for the texts.
        on_failure: called with the reason when no write can be trusted any more.
        is_full: whether an I/O error may have been a full disk.
    """
    try:
        yield
    except OSError as error:  # of a file beside the database
        raise StoreError(f"cannot use {directory}: {error.strerror}") from None
    except (lmdb.MapFullError, lmdb.MapResizedError):
        raise
    except _CORRUPT as error:
        text = f"{directory}: LMDB cannot read it: {error}"
        on_failure(text)
        raise CorruptStore(text) from None
    except lmdb.Error as error:
        # The text of an error of opening begins with the path already.
        reason = f"{directory}: {str(error).removeprefix(f'{directory}: ')}"
        is_failure = isinstance(error, lmdb.DiskError | lmdb.PanicError) or os.strerror(
            errno.EIO
        ) in str(error)
        if any(os.strerror(number) in str(error) for number in FULL) or (is_failure and is_full()):
            raise DiskFull(f"no room left on the disk of {directory}") from None
        if is_failure:
            text = f"{directory}: the disk failed: {error}"
            on_failure(text)
            raise StoreFailed(text) from None
        raise StoreError(reason) from None
