"""A feature store: a model asks for the features of a thousand things at once.

    dstash dev up && python examples/feature_store.py

One index per kind of thing, one key per thing, all of its features in one value: a request for
many things is then one batch, which goes to all peers at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dstash import Client

Features = dict[str, Any]


class FeatureStore:
    """The features of one kind of thing.

    Args:
        client: stays with the caller, who closes it.
        kind: what the features are of; names the index.
        defaults: the features to return, and their values where nothing is known.
        ttl: seconds after which features are too old to be used; None for never.
    """

    def __init__(
        self, client: Client, kind: str, defaults: Features, *, ttl: float | None = None
    ) -> None:
        self._client = client
        self._index = f"features.{kind}"
        self._defaults = defaults
        self._ttl = ttl

    def write(self, features: Mapping[Any, Features]) -> None:
        """Store the features of many things; replace the earlier ones.

        Raises:
            BatchError: some were not stored; ``outcomes`` tells which.
        """
        self._client.batch_put(self._index, features, ttl=self._ttl).raise_for_failures()

    def rows(self, things: Sequence[Any], *, names: Iterable[str]) -> list[list[Any]]:
        """Return one row per thing, in the given order, with defaults for unknown ones."""
        columns = list(names)
        found = self._client.batch_lookup(self._index, things)
        rows = [self._defaults | found.get(thing, {}) for thing in things]
        return [[row[name] for name in columns] for row in rows]


def main() -> None:
    """Write the features of 5,000 users, and read those of 1,000, some of them unknown."""
    defaults: Features = {"orders": 0, "spent": 0.0, "last_seen": None}
    with Client(timeout=30) as client:
        users = FeatureStore(client, "user", defaults, ttl=3600)
        users.write(
            {
                user: {"orders": user % 40, "spent": user * 0.5, "last_seen": datetime.now(UTC)}
                for user in range(5000)
            }
        )
        asked = range(4500, 5500)
        rows = users.rows(asked, names=["orders", "spent"])
    known = sum(row != [0, 0.0] for row in rows)
    print(f"{len(rows)} rows, {known} of users that are known; the first is {rows[0]}")


if __name__ == "__main__":
    main()
