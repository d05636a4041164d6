"""What is free for a store: on its disk, in its own file, and in the reserve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from dstash.store.interface import DiskState
from dstash.store.reserve import Reserve, free_bytes

_log = structlog.get_logger("dstash.store")

#: After a put met a full disk, others are refused without a try for so long (seconds): free pages
#: of the file may be too scattered for what is to be stored.
_REFUSED_FOR: Final = 1.0
#: A state that is no worse than the last one is logged after so long (seconds) at the earliest.
#: And a reserve that was given up is made again so much later at the earliest.
_QUIET: Final = 10.0

_STATES: Final = list(DiskState)


class Space:
    """The free space of one store. Any thread may use it.

    Args:
        directory: of the store.
        reserve: bytes that puts leave free, and that are allocated for deletes; fewer on a small
            disk. None: there is no reserve, and none is made.
        reusable: returns how many bytes of the data file hold nothing.
        clock: returns seconds, never going back.
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
        self._make_again_at = 0.0

    @property
    def reserved(self) -> int:
        """Bytes that are allocated for deletes."""
        return self._reserve.held

    def has_room(self, reserve: int) -> bool:
        """Whether puts may go on that leave ``reserve`` bytes free (of a large disk)."""
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
        """Take note that there was room for a commit."""
        self._is_exhausted = False

    def refused(self, *, may_spend: bool) -> bool:
        """Take note that there was no room for a commit.

        Args:
            may_spend: whether the commit may use the reserve.

        Returns:
            whether to try again: there is more room now.
        """
        if not may_spend:
            self._refused_until = self._clock() + _REFUSED_FOR
            return False
        if self._reserve.release():
            self._make_again_at = self._clock() + _QUIET
            _log.warning("the disk is full; its reserve was given up", path=str(self._directory))
            return True
        self._is_exhausted = True
        return False

    def tend(self) -> None:
        """Make the reserve if there is room for it, and log how full the disk is. Call it often."""
        with self._logging:
            self._make_reserve()
            self._log_state()

    def _make_reserve(self) -> None:
        if self._clock() < self._make_again_at:
            return
        why = self._reserve.make()
        if why is not None and not self._lacks_reserve:
            _log.warning(
                "the reserve of the disk cannot be allocated now; this is tried again",
                path=str(self._directory),
                reserve_bytes=self._reserve.size,
                why=why,
            )
        elif why is None and self._lacks_reserve:
            _log.info("the reserve of the disk is allocated", reserve_bytes=self._reserve.size)
        self._lacks_reserve = why is not None

    def _log_state(self) -> None:
        state, now = self.state, self._clock()
        is_worse = _STATES.index(state) > _STATES.index(self._logged)
        if state is self._logged or not (is_worse or now >= self._quiet_until):
            return
        free = {"free_bytes": free_bytes(self._directory), "reserve_bytes": self.reserved}
        if state is DiskState.AMPLE:
            _log.info("there is room on the disk again", **free)
        else:
            _log.warning(state.value, path=str(self._directory), **free)
        self._logged, self._quiet_until = state, now + _QUIET
