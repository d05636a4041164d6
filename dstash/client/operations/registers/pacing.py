"""How many keys a request for registers has, and how long its home may take to answer."""

from __future__ import annotations

from typing import Final

#: A peer accepts a thousand, but answers all of them together when the last is decided.
MAX_KEYS: Final = 1000

#: Requests of one call that are pending: more would only wait at their homes, until the client asks
#: other replicas, too.
WINDOW: Final = 8

#: Keys of a batch that are changed within one timeout: a register takes longer than a plain key.
KEYS_PER_ROUND: Final = 20_000

#: Two round trips between peers, with a sync each, and the queue of the key.
_PATIENCE_MS: Final = 1000
_PATIENCE_OF_KEY_MS: Final = 10


def patience_for(keys: int) -> int:
    """Return how long (milliseconds) a home may take before the next replica is asked."""
    return _PATIENCE_MS + _PATIENCE_OF_KEY_MS * (keys - 1)
