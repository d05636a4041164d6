"""The names of locks, semaphores and limiters, which follow the rules of keys.

A lock is the key that is its name. A semaphore and a limiter have several keys, which begin with
their name: a key for each place or period.
"""

from __future__ import annotations

from dstash.errors import UsageError
from dstash.wire.keys import Key, encode_key


def check_name(name: Key) -> None:
    """Check a name.

    Raises:
        LimitError: it is empty, longer than 400 bytes, or an int beyond 64 bits.
        UnsupportedType: it is neither str, bytes nor int.
    """
    try:
        encode_key(name)
    except UsageError as error:
        raise type(error)(f"name{str(error).removeprefix('key')}") from None


def key_within(name: Key, number: int) -> Key:
    """Return the key of a place or period; names that differ as keys never share one.

    The key of a str is a str. That of another name is bytes, and begins with the mark of its type.
    """
    encoded, suffix = encode_key(name), f"/{number}"
    return encoded.decode() + suffix if isinstance(name, str) else encoded + suffix.encode()
