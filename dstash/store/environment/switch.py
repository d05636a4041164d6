"""The switch of a store to the new data file of a compaction.

LMDB keeps the state of a data file in its lock file: which pages readers use, and the number of the
last transaction. Clients of the machine may have both files open, so the old lock file must never
be used with the new data file. Two files cannot be renamed at once. So the directory with both is
renamed first, and from then on any process that opens the store completes the switch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from dstash.errors import StoreFailed
from dstash.store.directory import COMPACTED, COMPACTING, DATA_FILE, LOCK_FILE, sync_entries


class Step(Enum):
    """The steps of a compaction."""

    BEGUN = "begun"
    COPYING = "copying"
    CATCHING_UP = "catching up"
    HELD = "commits are held back"
    COMPLETE = "the new file is complete"
    DECIDED = "the switch is decided"
    LOCK_MOVED = "the lock file is in its place"
    DATA_MOVED = "the data file is in its place"
    SWITCHED = "switched"


def prepare_switch(directory: Path) -> None:
    """Sync the names of the new files, which need not have their last content.

    Raises:
        OSError: they cannot be synced.
    """
    sync_entries(directory / COMPACTING)


def switch(directory: Path, on_step: Callable[[Step], None] = lambda step: None) -> None:
    """Move the files of a compaction to their place; call ``prepare_switch`` before.

    The names are synced once, at the end: until then no commit is acked, and after an end of the
    machine no process has a lock file open.

    Raises:
        OSError: nothing was moved.
        StoreFailed: the next process to open the store will use the new files, but they may not be
            in their place now, or not durably.
    """
    on_step(Step.COMPLETE)
    (directory / COMPACTING).rename(directory / COMPACTED)
    try:
        on_step(Step.DECIDED)
        finish_switch(directory, on_step)
    except OSError as error:
        raise StoreFailed(f"{directory}: the disk failed: {error.strerror}") from None


def finish_switch(directory: Path, on_step: Callable[[Step], None] = lambda step: None) -> None:
    """Complete a switch that was decided, perhaps by an earlier process.

    Raises:
        OSError: it cannot be completed now.
    """
    made = directory / COMPACTED
    if not made.is_dir():
        return
    if (made / DATA_FILE).exists():
        if (made / LOCK_FILE).exists():
            (made / LOCK_FILE).rename(directory / LOCK_FILE)
        on_step(Step.LOCK_MOVED)
        (made / DATA_FILE).rename(directory / DATA_FILE)
        on_step(Step.DATA_MOVED)
    sync_entries(directory)
    shutil.rmtree(made, ignore_errors=True)  # it is empty; else the next start removes it
