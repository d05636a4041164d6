"""The history of a run: what it notes for the checks."""

from __future__ import annotations

from tests.simulation.events import SECOND
from tests.simulation.history import History, Present


def test_present_ends_when_another_begins() -> None:
    history = History()
    for moment, ahead_ms in enumerate((-20_000, -19_990, 5, 30, 4, -600)):
        history.note_present("n1", moment * SECOND, ahead_ms)
    assert history.presents["n1"] == [
        Present(0, 2 * SECOND, -20_000),
        Present(2 * SECOND, 5 * SECOND, 4),
        Present(5 * SECOND, 5 * SECOND, -600),
    ]


def test_present_ends_while_a_peer_is_away() -> None:
    history = History()
    for moment in (0, 1, 9, 10):
        history.note_present("n1", moment * SECOND, -20_000)
    assert history.presents["n1"] == [
        Present(0, SECOND, -20_000),
        Present(9 * SECOND, 10 * SECOND, -20_000),
    ]
