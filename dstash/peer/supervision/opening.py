"""The opening of a peer's store and membership, and what becomes of a store that is not used.

A store that is corrupt, or belongs to a peer that was removed from its cluster, is set aside: moved
to a subdirectory. A peer that was removed waits to be added again, also after further restarts.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from dstash import events
from dstash.cluster.membership.interface import Membership
from dstash.cluster.membership.local.membership import LocalMembership
from dstash.config import PeerSettings
from dstash.errors import CorruptStore, ForeignStore
from dstash.store.directory import mark_removed, set_aside, shared_mode
from dstash.store.lmdb import LmdbStore

_log = structlog.get_logger("dstash.peer")


def open_membership(settings: PeerSettings, *, patient: bool) -> Membership:
    """Return the membership that the settings name.

    Args:
        patient: open a directory that cannot be used now.

    Raises:
        MembershipError: the directory cannot be used.
    """
    if settings.membership == "local":
        return LocalMembership(settings.membership_dir(), settings.cluster, patient=patient)
    # The import takes a fifth of a peer's start, so it is made only where Consul is used.
    from dstash.cluster.membership.consul.membership import ConsulMembership

    return ConsulMembership(
        settings.consul,
        settings.cluster,
        token=settings.token(),
        ca_file=settings.consul_ca_file,
        cert_file=settings.consul_cert_file,
        key_file=settings.consul_key_file,
    )


def open_store(settings: PeerSettings) -> LmdbStore:
    """Open the store; set a corrupt one aside if the settings allow it.

    Raises:
        StoreError: it cannot be used.
    """
    try:
        store = _store(settings)
    except CorruptStore as error:
        if settings.on_corrupt == "stop":
            raise CorruptStore(
                f"{error}; start with on_corrupt = 'resync' to move it away and stream its data "
                "from the other replicas"
            ) from None
        _log.error(
            "the corrupt store was set aside",
            error=str(error),
            old_store=_set_aside(settings.data_dir),
        )
        store = _store(settings)
    _warn_if_shared(settings.data_dir)
    return store


def replace_removed(settings: PeerSettings, store: LmdbStore) -> LmdbStore:
    """Set aside the store of a peer that was removed from its cluster; returns an empty one.

    From now on the peer joins only by an admin request; see ``was_removed`` of the directory.

    Raises:
        StoreError: the directory cannot be written.
    """
    mark_removed(settings.data_dir)  # first: a crash must not let it join by itself
    store.close()
    _log.warning(
        "this peer was removed from the cluster; its store was set aside",
        old_store=_set_aside(settings.data_dir),
    )
    return _store(settings)


def peer_id(settings: PeerSettings, store: LmdbStore) -> str:
    """Return the id of the peer: that of the store, of the settings, or of the directory's name.

    Raises:
        ForeignStore: the settings name another id than the store.
    """
    kept = store.identity.peer if store.identity else None
    if kept is not None and settings.id not in (None, kept):
        raise ForeignStore(
            f"data directory {settings.data_dir} belongs to peer {kept!r}, not to {settings.id!r}"
        )
    return kept or settings.id or settings.data_dir.resolve().name


def _store(settings: PeerSettings) -> LmdbStore:
    return LmdbStore(settings.data_dir, settings.durability, settings.disk_reserve)


def _set_aside(directory: Path) -> str:
    aside, dropped = set_aside(directory)
    for old in dropped:
        _log.warning("an old set-aside store was deleted", path=str(old))
    return str(aside)


def _warn_if_shared(directory: Path) -> None:
    if mode := shared_mode(directory):
        _log.warning(
            events.DIRECTORY_SHARED,
            path=str(directory),
            mode=mode,
            remedy=f"chmod 700 {directory}",
        )
