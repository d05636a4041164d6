"""The trace that a request is part of, in the format of W3C Trace Context.

It is a map at the end of the header, after the fields of the message, where receivers ignore
unknown entries. No request has a map as its last field, and a field that is appended later goes
before the trace, so the two cannot be confused.

https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import re
from typing import Any, Final

_TRACEPARENT: Final = "traceparent"
#: version, trace, span, flags; version ff, and a trace or span of zeros, are invalid.
_VALID: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_LENGTH: Final = 55


def context_of(trace: str) -> dict[str, str]:
    """Return the map that names the trace of a request."""
    return {_TRACEPARENT: trace}


def trace_of(context: dict[Any, Any]) -> str:
    """Return the trace that a map names; empty if it is invalid.

    An invalid trace does not invalidate the request: traces are only for observation.
    """
    trace = context.get(_TRACEPARENT)
    if type(trace) is not str or len(trace) != _LENGTH or _VALID.fullmatch(trace) is None:
        return ""
    return trace
