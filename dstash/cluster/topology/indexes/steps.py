"""The steps about settings of indexes, from one topology to the next; see ``settings.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dstash.cluster.topology.indexes.settings import (
    FEATURE,
    MAX_TTL,
    TTL,
    IndexSettings,
    check_settings,
)
from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict, UsageError
from dstash.limits import check_index
from dstash.store.register.ballot import SIGN
from dstash.version import Stamp

#: The most indexes with settings: each request that carries the topology carries them.
MAX_INDEXES: Final = 128


def with_settings(
    topology: Topology, index: str, settings: Mapping[str, int], stamp: Stamp
) -> Topology:
    """Return the topology in which an index has other settings; the same if it has them already.

    Args:
        topology: the present one.
        index: its name.
        settings: milliseconds by name, 0 to remove a setting. Those that are not named stay.
        stamp: from which a new ``max_ttl`` applies to whole records.

    Raises:
        LimitError, UsageError: the index or a setting is not allowed.
        ChangeConflict: a member runs an earlier version, or too many indexes have settings.
    """
    check_target(index)
    check_settings(settings)
    if not topology.formed:
        raise ChangeConflict("the cluster has not formed yet; no index can have settings")
    check_features(topology)
    before = topology.index_settings(index) or IndexSettings(index)
    after = replace(
        before,
        ttl=settings.get(TTL, before.ttl),
        max_ttl=settings.get(MAX_TTL, before.max_ttl),
    )
    if after == before:
        return topology
    begun = topology.next()
    if after.max_ttl != before.max_ttl:
        after = replace(after, since=stamp if after.max_ttl else 0)
    after = replace(after, number=begun.epoch)
    others = [known for known in topology.indexes if known.name != index]
    kept = [*others, after] if after.ttl or after.max_ttl else others
    if len(kept) > MAX_INDEXES:
        raise ChangeConflict(
            f"{len(others)} indexes have settings; allowed are {MAX_INDEXES}. Remove those that "
            "are not needed: dstash index set NAME ttl=none max_ttl=none"
        )
    indexes = tuple(sorted(kept, key=lambda known: known.name))
    return replace(begun, indexes=indexes, indexes_epoch=begun.epoch)


def has_settings(topology: Topology, index: str, settings: Mapping[str, int]) -> bool:
    """Whether an index has settings in a topology: milliseconds by name, 0 for none."""
    found = topology.index_settings(index) or IndexSettings(index)
    return all(getattr(found, name) == value for name, value in settings.items())


def check_target(index: str) -> None:
    """Check the name of an index that is to have settings.

    Raises:
        LimitError: it is no name of an index.
        UsageError: it is reserved for registers, whose expiry replicas agree on.
    """
    check_index(index)
    if index.startswith(SIGN):
        raise UsageError(f"index {index!r} is reserved for registers; it cannot have settings")


def check_features(topology: Topology) -> None:
    """Refuse settings while a member would not apply them.

    Raises:
        ChangeConflict: a member runs an earlier version.
    """
    old = [member.id for member in topology.members if FEATURE not in member.features.split()]
    if old:
        raise ChangeConflict(
            f"{', '.join(old)} runs an earlier version, which does not apply settings of indexes; "
            "upgrade all members"
        )


def with_settings_kept(stored: Topology, last: Topology | None) -> Topology | None:
    """Return the topology with the settings that a member of an earlier version has removed.

    Such a member writes the topology without the fields that it does not know. Other settings than
    the last known ones are those of a later request, or of another history: they stay, because
    nothing shows which history has the later request.

    Args:
        stored: the present one.
        last: the newest that this peer has used.

    Returns:
        the next topology; None if no settings are missing, as far as this peer knows.
    """
    if last is None or last.cluster_id != stored.cluster_id:
        return None
    if stored.indexes_epoch or not last.indexes_epoch or last.epoch >= stored.epoch:
        return None
    kept = replace(stored, indexes=last.indexes, indexes_epoch=last.indexes_epoch)
    return kept.next()
