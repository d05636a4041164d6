"""Translation of LMDB's errors into those of dstash."""

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
    lmdb.BadTxnError,  # raised when a transaction meets a page that is not part of a tree
)


@contextmanager
def translated(
    directory: Path,
    on_failure: Callable[[str], None] = lambda reason: None,
    is_full: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Translate errors of LMDB, and of other files of the store. A full map passes through.

    Args:
        directory: the directory of the store, for the messages.
        on_failure: called with the reason when writes are no longer reliable.
        is_full: returns whether an I/O error may be due to a full disk.
    """
    try:
        yield
    except OSError as error:  # of another file of the store
        raise StoreError(f"cannot use {directory}: {error.strerror}") from None
    except (lmdb.MapFullError, lmdb.MapResizedError):
        raise
    except _CORRUPT as error:
        text = f"{directory}: LMDB cannot read it: {error}"
        on_failure(text)
        raise CorruptStore(text) from None
    except lmdb.Error as error:
        # The message of an error while opening already begins with the path.
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
