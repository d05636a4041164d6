"""The error tree: stable codes, one base class, and texts that survive the wire."""

from __future__ import annotations

import pytest

from dstash import errors
from dstash.errors import BY_CODE, BatchError, DStashError, Refused, from_wire
from dstash.types import Outcome

#: Other programs rely on these codes: append, never change.
CODES = {
    1: "DStashError",
    2: "UsageError",
    3: "LimitError",
    4: "UnsupportedType",
    5: "ConfigError",
    10: "ProtocolError",
    11: "VersionMismatch",
    20: "Refused",
    21: "StaleEpoch",
    22: "WrongCluster",
    23: "Misrouted",
    24: "NotReady",
    25: "Forming",
    26: "Busy",
    27: "ClockSkew",
    28: "BelowFloor",
    29: "DiskFull",
    30: "StoreFailed",
    31: "CorruptRecord",
    32: "DeadlinePassed",
    33: "Unauthorised",
    34: "Conflict",
    36: "Preempted",
    37: "Forgotten",
    38: "IndexDropped",
    40: "Unavailable",
    41: "NoPeers",
    42: "TimedOut",
    43: "BatchError",
    44: "ClosedError",
    45: "UndecodableValue",
    46: "LockLost",
    47: "AnswerLost",
    50: "StoreError",
    51: "StoreInUse",
    52: "ForeignStore",
    53: "CorruptStore",
    60: "MembershipError",
    61: "MembershipUnreachable",
    62: "PeerIdInUse",
    63: "ChangeConflict",
}


def test_codes_are_stable() -> None:
    assert {code: BY_CODE[code].__name__ for code in CODES} == CODES


def test_every_error_has_a_code_and_is_in_the_tree() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    ours = {cls for cls in classes if issubclass(cls, DStashError)}
    assert ours == set(BY_CODE.values())
    tree = (errors.__doc__ or "").split("The codes are")[0]
    for cls in ours:
        assert cls.__name__ in tree
        assert cls.__doc__


def test_duplicate_code_is_refused() -> None:
    class Usurper(DStashError):
        code = 21

    try:
        with pytest.raises(AssertionError, match="share 21"):
            errors._index_by_code()
    finally:
        Usurper.code = 9_999  # the class still exists


def test_details_are_attributes_and_message_is_text() -> None:
    error = errors.Busy("come back", retry_after_ms=20)
    assert str(error) == "come back"
    assert error.details == {"retry_after_ms": 20}
    assert BatchError("some", {"k": Outcome.UNKNOWN}).outcomes == {"k": Outcome.UNKNOWN}
    assert BatchError("none").outcomes == {}


def test_errors_are_also_builtin_exceptions() -> None:
    assert issubclass(errors.LimitError, ValueError)
    assert issubclass(errors.UnsupportedType, TypeError)
    assert issubclass(errors.TimedOut, TimeoutError)


def test_unknown_code_becomes_refused() -> None:
    error = from_wire(9_876, "news", {"a": 1})
    assert type(error) is Refused
    assert error.details == {"a": 1}
    assert not error.retryable
