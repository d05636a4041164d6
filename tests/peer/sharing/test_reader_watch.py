"""A reader that holds a snapshot is logged once, and reported as long as it does."""

from __future__ import annotations

import structlog.testing

from dstash import events
from dstash.peer.sharing.reader_watch import ReaderWatch
from dstash.store.sharing.reader_table import Readers

HEAD = "    pid     thread     txnid\n"


class _Store:
    def __init__(self) -> None:
        self.table, self.last, self.tended = HEAD, 5, 0

    def tend(self) -> None:
        self.tended += 1

    def readers(self) -> tuple[str, int]:
        return self.table, self.last


def test_reader_that_holds_a_snapshot_is_reported() -> None:
    store, now, held = _Store(), [0.0], list[Readers]()
    shown = list[str]()
    watch = ReaderWatch(store, shown.append, lambda: now[0])
    watch.on_held = held.append
    with structlog.testing.capture_logs() as logs:
        store.table = f"{HEAD} 77 7f00 4\n"
        for now[0] in (0, 1, 20, 31, 33, 35):
            watch.tend()
        store.table = HEAD
        now[0] = 37
        watch.tend()
    assert store.tended == 7
    assert [line["event"] for line in logs] == [events.SNAPSHOT_HELD, events.SNAPSHOT_RELEASED]
    assert logs[0]["pid"] == 77
    assert [text[:40] for text in shown] == ["process 77 has read from the store for 3", ""]
    assert [round(readers.oldest_s) for readers in held] == [31, 33, 35]
    assert watch.describe() == {"known": 0, "oldest_s": 0}
