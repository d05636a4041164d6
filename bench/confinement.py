"""Keeps processes to an amount of memory: in a control group, where this user may make one."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

#: Where control groups of version 2 and of version 1 are, and what bounds their memory.
_HIERARCHIES: Final = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)


class Confinement(NamedTuple):
    """How a process is confined, and what confines the process with an id."""

    how: str
    confine: Callable[[int], None]


@contextmanager
def confined(name: str, limit: int) -> Iterator[Confinement]:
    """Make a place for one process that may have ``limit`` bytes.

    A control group counts the pages of files too, so a larger data set has to be read from disk
    again and again. Without one, only the process's own memory is limited (``RLIMIT_DATA``; a
    limit on addresses would keep LMDB from mapping its file), and the page cache is not.
    """
    group = _group(f"dstash-bench-{os.getpid()}-{name}", limit)
    if group is None:
        how = "a limit of its data segment alone (no control group could be made)"
        yield Confinement(how, partial(_limit, limit))
        return
    try:
        yield Confinement("a control group", partial(_join, group))
    finally:
        group.rmdir()


def _group(name: str, limit: int) -> Path | None:
    for parent, setting in _HIERARCHIES:
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            # Opened, not made: where this is no hierarchy it is a directory like any other.
            with (group / setting).open("r+") as file:
                file.write(str(limit))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def _join(group: Path, process: int) -> None:
    (group / "cgroup.procs").write_text(str(process))


def _limit(limit: int, process: int) -> None:
    resource.prlimit(process, resource.RLIMIT_DATA, (limit, limit))
