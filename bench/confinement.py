"""Memory limits of processes: by a control group if this user can create one."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

#: The paths of control groups of version 2 and version 1, and their memory limits.
_HIERARCHIES: Final = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)


class Confinement(NamedTuple):
    """The kind of limit, and a function that applies it to a process id."""

    how: str
    confine: Callable[[int], None]


@contextmanager
def confined(name: str, limit: int) -> Iterator[Confinement]:
    """Create a limit of ``limit`` bytes for a process.

    A control group also counts pages of files, so a larger data set is read from disk repeatedly.
    Without one, only the process's own memory is limited (``RLIMIT_DATA``; a limit of the address
    space would prevent LMDB from mapping its file), but not the page cache.
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
            # Opened, not created: outside a hierarchy it would be an ordinary directory.
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
