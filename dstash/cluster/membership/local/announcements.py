"""The announcements of live peers: the contents of the lock files that they hold."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from dstash.cluster.membership.local.lock import read_if_held
from dstash.cluster.topology.announcement import Announcement, decode

_HALF_WRITTEN_TRIES: Final = 5
_HALF_WRITTEN_PAUSE_S: Final = 0.002


def announcements_in(folder: Path | str) -> dict[str, Announcement]:
    """Return the announcements of live peers by peer.

    Raises:
        OSError: the folder cannot be read.
    """
    found = (read_announcement(entry.path) for entry in os.scandir(folder))
    return {announcement.peer: announcement for announcement in found if announcement}


def read_announcement(path: Path | str) -> Announcement | None:
    """Return the announcement of a live peer, with time for it to finish writing."""
    for _ in range(_HALF_WRITTEN_TRIES):
        content = read_if_held(path)
        if content is None:
            return None
        if (announcement := decode(content)) is not None:
            return announcement
        time.sleep(_HALF_WRITTEN_PAUSE_S)
    return None
