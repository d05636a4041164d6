"""Notes about traced requests, which ``spans.py`` turns into spans afterwards.

A span costs more than a look-up, so none is made while a client waits: the socket's thread and the
committing thread note a few numbers, and pass them on when the answer is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dstash.errors import BY_CODE, Refused
from dstash.limits import MAX_INDEX_BYTES
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Error, Lookup, Stored, Want
from dstash.wire.shapes import Message

#: Outcomes of requests that were not refused, named as in the metrics, and of those whose deadline
#: had passed.
ANSWERED: Final = "Answered"
STORED: Final = "Stored"
PARTLY: Final = "Partly"
LATE: Final = "Late"

_DIGEST: Final = Want.DIGEST.value


class Notes:
    """The notes about one request. Times are nanoseconds since 1970, 0 for never."""

    __slots__ = (
        *("came", "queued", "taken", "merged", "synced", "answered_at"),
        *("code", "done", "group", "index", "keys", "kind", "level", "outcome", "trace"),
    )

    def __init__(self, envelope: Envelope, came: int, done: Callable[[Notes], None]) -> None:
        message = envelope.message
        self.trace = envelope.trace
        self.came = came
        self.queued = self.taken = self.merged = self.synced = self.answered_at = 0
        self.group = self.code = 0
        self.outcome = ""
        self.done = done
        self.kind = type(message).__name__
        # The message is not checked yet, and a span must not become as large as a message.
        self.index: str = getattr(message, "index", "")[:MAX_INDEX_BYTES]
        self.keys = codec.array_length(getattr(message, "keys", b""))
        self.level = ""
        if isinstance(message, Lookup):
            self.level = "quorum" if message.want & _DIGEST else "one"

    def waits(self) -> None:
        """Take note that a write waits for the disk from now on."""
        self.queued = time.time_ns()

    def committed(self, took: float, sync: float, group: int) -> None:
        """Take note that the commit of the write has ended.

        Args:
            took: seconds in all.
            sync: seconds of that until the data was on disk.
            group: how many writes were in the commit.
        """
        self.synced = time.time_ns()
        self.merged = self.synced - round(sync * 1e9)
        self.taken = self.synced - round(took * 1e9)
        self.group = group

    def answered(self, message: Message) -> None:
        """Take note of the answer, which ends the notes."""
        if isinstance(message, Error):
            self.code = message.code
            self._end(BY_CODE.get(message.code, Refused).__name__)
        elif isinstance(message, Stored):
            self._end(PARTLY if message.rejected else STORED)
        else:
            self._end(ANSWERED)

    def late(self) -> None:
        """Take note that the deadline of the request has passed, which ends the notes."""
        self._end(LATE)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self.answered_at = time.time_ns()
        self.done(self)


class Tracer:
    """Begins the notes of requests.

    Args:
        done: takes the notes of each request when it has been answered; must not wait.
    """

    def __init__(self, done: Callable[[Notes], None]) -> None:
        self._done = done
        #: How long (seconds) the present message waited in the inbox.
        self.waited = 0.0

    def begin(self, envelope: Envelope) -> Notes:
        """Return the notes of a request that has just left the inbox."""
        return Notes(envelope, time.time_ns() - round(self.waited * 1e9), self._done)
