"""Losses in a run against which write levels do not protect."""

from __future__ import annotations

from enum import Enum


class Loss(Enum):
    """A kind of loss, after which a write that a single replica acked may be gone."""

    STORE = "the disk of a peer was lost"
    RECORD = "a record was corrupt"
    COPY = "the disk of a peer was replaced by an old copy of it"
    CLOCK = "the clock of a peer was off by far more than stamps may be"
