"""A feature store: a model requests the features of a thousand entities in one batch.

    dstash dev up && python examples/feature_store.py

Each kind of entity is an index, each entity a key, and the value has all of its features. A request
for many entities is then one batch, which goes to all peers in parallel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dstash import Client

Features = dict[str, Any]


class FeatureStore:
    """The features of one kind of entity.

    Args:
        client: the caller closes it.
        kind: the kind of entity; the name of the index.
        defaults: the features to return, with their default values.
        ttl: seconds after which features expire; None for never.
    """

    def __init__(
        self, client: Client, kind: str, defaults: Features, *, ttl: float | None = None
    ) -> None:
        self._client = client
        self._index = f"features.{kind}"
        self._defaults = defaults
        self._ttl = ttl

    def write(self, features: Mapping[Any, Features]) -> None:
        """Store the features of many entities; replace earlier features.

        Raises:
            BatchError: some were not stored; ``outcomes`` lists them.
        """
        self._client.batch_put(self._index, features, ttl=self._ttl)

    def rows(self, things: Sequence[Any], *, names: Iterable[str]) -> list[list[Any]]:
        """Return a row per entity in the given order, with defaults for unknown entities."""
        columns = list(names)
        found = self._client.batch_lookup(self._index, things)
        rows = [self._defaults | found.get(thing, {}) for thing in things]
        return [[row[name] for name in columns] for row in rows]


def main() -> None:
    """Write the features of 5,000 users, and read those of 1,000, some of which are unknown."""
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
