"""The log's writer: a bounded queue and a thread, so that a log call neither blocks nor raises.

A pipe without a reader, a closed stream or a full disk blocks only this thread. Lines that it
cannot write, or that do not fit into the queue, are lost; their number is reported with the next
line that can be written.
"""

from __future__ import annotations

import _thread
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TextIO

#: The most characters that wait.
_QUEUE_CHARS: Final = 4 * 1024 * 1024
#: Bytes of one ``write``: whole lines up to this are not torn by other writers of the same pipe.
_WRITE_BYTES: Final = 4096
#: Seconds between attempts to report lost lines, when no other line comes.
_REPORT_INTERVAL_S: Final = 1.0
_POLL_MS: Final = 1000


class LogWriter:
    """Writes lines to a stream, in the order in which they were put.

    ``put`` may be called by any thread, in a signal handler, and in the child of a fork.

    Args:
        stream: the target; if it has a file descriptor, that is used.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        #: Returns the line that reports a number of lost lines.
        self.loss_line: Callable[[int], str] = "{} log lines were lost".format
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # The child of a fork has neither the thread nor, perhaps, a lock that is free.
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._mutex = threading.RLock()  # reentrant: a signal handler may log inside of ``put``
        self._waiting_chars = 0
        self._lost = 0
        self._runs = False
        self._is_torn = False

    @property
    def lost(self) -> int:
        """How many lines were lost and are not reported yet."""
        return self._lost

    def put(self, line: str) -> None:
        """Queue a line; count it as lost when too many wait."""
        with self._mutex:
            if self._waiting_chars and self._waiting_chars + len(line) > _QUEUE_CHARS:
                self._lost += 1
                return
            self._waiting_chars += len(line)
            self._lines.put(line)
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until all that was put is written or lost."""
        written = threading.Event()
        with self._mutex:
            self._lines.put(written)
            self._start()
        return written.wait(timeout)

    def _start(self) -> None:
        if not self._runs:
            self._runs = True
            try:
                # Not threading.Thread: its start takes locks, and this may be a signal handler.
                _thread.start_new_thread(self._run, (self._lines,))
            except RuntimeError:  # out of threads, or the interpreter ends: the next line tries
                self._runs = False

    # -- the thread

    def _run(self, lines: queue.SimpleQueue[str | threading.Event]) -> None:
        while True:
            batch = _take(lines, _REPORT_INTERVAL_S if self._lost else None)
            texts = [item for item in batch if isinstance(item, str)]
            try:
                self._write_all(texts)
            except Exception:  # the stream is not a file
                self._add(lost=len(texts))
            self._add(waiting=-sum(map(len, texts)))
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _add(self, *, lost: int = 0, waiting: int = 0) -> None:
        with self._mutex:
            self._lost += lost
            self._waiting_chars = max(0, self._waiting_chars + waiting)

    def _write_all(self, texts: list[str]) -> None:
        stream = self.stream if self.stream is not None else sys.stderr
        descriptor = _descriptor(stream)
        reported = self._lost
        if reported and self._write(stream, descriptor, [_encode(self.loss_line(reported))]) == 0:
            self._add(lost=-reported)
        for group in _grouped(map(_encode, texts)):
            self._add(lost=self._write(stream, descriptor, group))

    def _write(self, stream: TextIO, descriptor: int | None, lines: list[bytes]) -> int:
        """Write lines at once; returns how many of them were not written as a whole."""
        data = b"".join(lines)
        if descriptor is None:
            stream.write(data.decode())
            stream.flush()
            return 0
        if self._is_torn:
            data, lines = b"\n" + data, [b"\n" + lines[0], *lines[1:]]
        written = _write(descriptor, data)
        if written:
            self._is_torn = data[written - 1 : written] != b"\n"
        whole = 0
        for line in lines:
            written -= len(line)
            whole += written >= 0
        return len(lines) - whole


def _take(
    lines: queue.SimpleQueue[str | threading.Event], timeout: float | None
) -> list[str | threading.Event]:
    """Return the waiting items in order; wait up to ``timeout`` seconds for the first."""
    try:
        batch = [lines.get(timeout=timeout)]
        for _ in range(lines.qsize()):
            batch.append(lines.get_nowait())  # noqa: PERF401  # taken items must not get lost
    except queue.Empty:
        return []
    return batch


def _grouped(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield lines in groups of at most ``_WRITE_BYTES``, a longer line alone."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        if group and size + len(line) > _WRITE_BYTES:
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


def _encode(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace") + b"\n"


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _write(descriptor: int, data: bytes) -> int:
    """Write until all is written or an error occurs; returns how many bytes were written."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, data[written:])
        except BlockingIOError:  # another process made the shared stream non-blocking
            _wait_for_room(descriptor)
        except OSError:
            break
    return written


def _wait_for_room(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(_POLL_MS)
