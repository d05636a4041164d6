"""The free space of a store: on its disk, in its data file, and in the reserve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from dstash import events
from dstash.store.interface import DiskState
from dstash.store.reserve import Reserve, free_bytes

_log = structlog.get_logger("dstash.store")

#: For this long after a put failed on a full disk, puts are refused without a try: the free pages
#: of the file may be too fragmented for them.
_REFUSE_S: Final = 1.0
#: The shortest time before a state that is not worse is logged, and before a released reserve is
#: allocated again.
_QUIET_S: Final = 10.0

_STATES: Final = list(DiskState)


class Space:
    """The free space of one store. Any thread may use it.

    Args:
        directory: the directory of the store.
        reserve: bytes that puts leave free and that are allocated for deletes; fewer on a small
            disk. None: there is no reserve, and none is allocated.
        reusable: returns how many bytes of the data file are unused.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        directory: Path,
        reserve: int | None,
        reusable: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._wanted = reserve or 0
        self._reserve = Reserve(directory, reserve)
        self._reusable = reusable
        self._clock = clock
        self._refused_until = 0.0
        self._is_exhausted = False
        self._logging = threading.Lock()
        self._logged = DiskState.AMPLE
        self._quiet_until = 0.0
        self._lacks_reserve = False
        self._allocate_at = 0.0

    @property
    def reserved(self) -> int:
        """Bytes allocated for deletes."""
        return self._reserve.held

    def has_room(self, reserve: int) -> bool:
        """Whether puts that leave ``reserve`` bytes free (on a large disk) are accepted."""
        if reserve >= self._wanted and self._clock() < self._refused_until:
            return False
        return self._exceeds(reserve)

    def _exceeds(self, reserve: int) -> bool:
        reserve = self._reserve.share(reserve)
        free = free_bytes(self._directory) + self._reserve.held
        return free > reserve or free + self._reusable() > reserve

    @property
    def state(self) -> DiskState:
        """How full the disk is."""
        if self._is_exhausted and not self._exceeds(self._wanted // 2):
            return DiskState.EXHAUSTED
        if not self.has_room(self._wanted):
            return DiskState.FULL
        return DiskState.AMPLE if self._exceeds(2 * self._wanted) else DiskState.SCARCE

    def stored(self) -> None:
        """Record that a commit found room."""
        self._is_exhausted = False

    def refused(self, *, may_spend: bool) -> bool:
        """Record that a commit found no room.

        Args:
            may_spend: whether the commit may use the reserve.

        Returns:
            whether to try again, because the reserve was released.
        """
        if not may_spend:
            self._refused_until = self._clock() + _REFUSE_S
            return False
        if self._reserve.release():
            self._allocate_at = self._clock() + _QUIET_S
            _log.warning(events.RESERVE_RELEASED, path=str(self._directory))
            return True
        self._is_exhausted = True
        return False

    def tend(self) -> None:
        """Allocate the reserve if there is room, and log how full the disk is. Call it often."""
        with self._logging:
            self._make_reserve()
            self._log_state()

    def _make_reserve(self) -> None:
        if self._clock() < self._allocate_at:
            return
        problem = self._reserve.make()
        if problem is not None and not self._lacks_reserve:
            _log.warning(
                "the reserve of the disk cannot be allocated now; will try again",
                path=str(self._directory),
                reserve_bytes=self._reserve.size,
                why=problem,
            )
        elif problem is None and self._lacks_reserve:
            _log.info("the reserve of the disk is allocated", reserve_bytes=self._reserve.size)
        self._lacks_reserve = problem is not None

    def _log_state(self) -> None:
        state, now = self.state, self._clock()
        is_worse = _STATES.index(state) > _STATES.index(self._logged)
        if state is self._logged or not (is_worse or now >= self._quiet_until):
            return
        free = {"free_bytes": free_bytes(self._directory), "reserve_bytes": self.reserved}
        if state is DiskState.AMPLE:
            _log.info(events.DISK_FREE, **free)
        else:
            _log.warning(state.value, path=str(self._directory), **free)
        self._logged, self._quiet_until = state, now + _QUIET_S
