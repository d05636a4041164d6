"""The trace that a request is part of, as W3C Trace Context writes it down.

It travels as a map at the end of the header, behind the fields of the message: there receivers
ignore what they do not know. No request ends in a map of its own, so a field that is appended to
one later goes before it, and the two are never taken for each other.

https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import re
from typing import Any, Final

_TRACEPARENT: Final = "traceparent"
#: version, trace, span, flags; version ff, and a trace or span of zeros, are no trace.
_SOUND: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_LENGTH: Final = 55


def context_of(trace: str) -> dict[str, str]:
    """Return the map that says which trace a request is part of."""
    return {_TRACEPARENT: trace}


def trace_of(context: dict[Any, Any]) -> str:
    """Return the trace that such a map names; none if what it says is no trace.

    Whoever sent it, the request counts: a trace is for people to look at, nothing depends on it.
    """
    trace = context.get(_TRACEPARENT)
    if type(trace) is not str or len(trace) != _LENGTH or _SOUND.fullmatch(trace) is None:
        return ""
    return trace
