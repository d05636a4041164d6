"""Settings of indexes: the expiry of writes that have none, and the longest that writes may have.

They are entries of the topology. A peer applies them to the writes of clients that it admits, and
it admits a write only under the epoch that the write was sent under. The expiry is computed from
the stamp of the version. So all replicas that admit a request store the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dstash.errors import LimitError, ProtocolError, UsageError
from dstash.limits import check_index
from dstash.store.record import Record
from dstash.types import NEVER
from dstash.version import MAX_STAMP, Stamp, Version, newest_stamp, stamp_milliseconds, write_stamp

#: The name of this feature in ``Member.features``.
FEATURE: Final = "index-settings"

#: The names of the settings, as in requests.
TTL: Final = "ttl"
MAX_TTL: Final = "max_ttl"
NAMES: Final = (TTL, MAX_TTL)

#: 36,500 days, in milliseconds. It is below the longest time to live that a client may send, so
#: that an expiry computed from a stamp slightly ahead of a peer's clock is not refused.
MAX_TTL_MS: Final = 36_500 * 86_400_000


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """The settings of one index. Times are in milliseconds; 0 means that there is none.

    ``ttl`` is the time to live of a put that has none. ``max_ttl`` is the longest time to live of a
    record. ``since`` is the stamp from which ``max_ttl`` applies to whole records: earlier records
    keep their expiry when a client copies them to a replica. ``number`` is the epoch of the last
    request about the index.
    """

    name: str
    ttl: int = 0
    max_ttl: int = 0
    since: Stamp = 0
    number: int = 0

    def expiry(self, version: Version, expiry: int) -> int:
        """Return the expiry of a put that was sent with ``expiry``."""
        begin = stamp_milliseconds(write_stamp(version))
        if expiry == NEVER and self.ttl:
            expiry = begin + self.ttl
        return self._limited(begin, expiry)

    def record(self, record: Record, *, is_touch: bool = False) -> Record:
        """Return a whole record as it may be stored: with another expiry if its own is too late.

        A tombstone, and a record that was neither written nor touched after ``since``, stay as they
        are. A touch is after it, even if the clock of its client is late. ``ttl`` does not apply:
        whole records have been stored before, or are touched, and a touch always names its time to
        live.

        Args:
            record: the record.
            is_touch: whether its client touches it now.
        """
        newest = newest_stamp(record.version)
        is_earlier = newest <= self.since and not is_touch
        if not self.max_ttl or record.is_tombstone or is_earlier:
            return record
        return record._replace(expiry=self._limited(stamp_milliseconds(newest), record.expiry))

    def _limited(self, begin: int, expiry: int) -> int:
        limit = begin + self.max_ttl
        return limit if self.max_ttl and (expiry == NEVER or expiry > limit) else expiry


def check_settings(settings: Mapping[str, int]) -> None:
    """Check settings by name, in milliseconds; 0 removes a setting.

    Raises:
        UsageError: there is none, or a name is unknown.
        LimitError: a time is not allowed.
    """
    if not settings:
        raise UsageError(f"no setting is given; there are {', '.join(NAMES)}")
    for name, value in settings.items():
        if name not in NAMES:
            raise UsageError(f"no setting {name!r} of an index; there are {', '.join(NAMES)}")
        if type(value) is not int or not 0 <= value <= MAX_TTL_MS:
            raise LimitError(
                f"{name} is {value!r} ms; allowed are 1 ms to {MAX_TTL_MS // 86_400_000:,} days, "
                "and none"
            )


def decoded_settings(raw: Any) -> IndexSettings:
    """Return settings from their JSON form; ``ProtocolError`` if they are malformed."""
    settings = IndexSettings(
        str(raw["name"]),
        int(raw.get(TTL, 0)),
        int(raw.get(MAX_TTL, 0)),
        int(raw.get("since", 0)),
        int(raw.get("number", 0)),
    )
    try:
        check_index(settings.name)
        check_settings({TTL: settings.ttl, MAX_TTL: settings.max_ttl})
    except LimitError as error:
        raise ProtocolError(
            f"topology has settings of an index that are not valid: {error}"
        ) from None
    if not 0 <= settings.since <= MAX_STAMP:
        raise ProtocolError(f"topology has settings of an index since the stamp {settings.since}")
    return settings
