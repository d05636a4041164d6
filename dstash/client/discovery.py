"""Where to look for the first peer."""

from __future__ import annotations

from typing import Final

from dstash.cluster.membership.interface import Membership
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Member, TransportSecurity
from dstash.config import ClientSettings
from dstash.errors import ConfigError, MembershipError, NoPeers
from dstash.wire.curve import KeyPair

# The backends are imported where they are used: most clients need neither, and Consul's brings an
# HTTP library that takes longer to load than the rest of a short command.

#: Where ``dstash dev up`` likes to start peers.
_DEV_SEEDS: Final = [f"tcp://127.0.0.1:{port}" for port in (5000, 5001, 5002)]


def identity(settings: ClientSettings) -> KeyPair | None:
    """Return the keys of the client, None when it goes without CURVE.

    Raises:
        ConfigError: a key file is not right.
    """
    if settings.cert_file is None or settings.key_file is None:
        return None  # all are set, or none: the configuration sees to it
    return KeyPair.load(settings.cert_file, settings.key_file)


def security_of(settings: ClientSettings) -> TransportSecurity:
    """Return how the client connects."""
    return TransportSecurity.CLOSED if settings.curve else TransportSecurity.OPEN


def find_seeds(settings: ClientSettings, patience: float) -> list[str]:
    """Return where to greet peers, from the settings, from the membership, or the local default.

    ``patience``: seconds for each answer of Consul.

    With CURVE each address comes once with each key of ``server_key``: which of them it has is
    not known yet. What the membership says of keys is not asked, for it proves nothing.

    Raises:
        NoPeers: the membership was asked and knows no peer of the cluster, or does not answer.
    """
    addresses = _addresses(settings, patience)
    if not settings.curve:
        return addresses
    return [f"{address} {key}" for address in addresses for key in settings.server_key or ()]


def _addresses(settings: ClientSettings, patience: float) -> list[str]:
    if settings.peers:
        return [with_scheme(peer) for peer in settings.peers]
    if settings.consul:
        return _ask(_consul(settings, patience), f"Consul at {settings.consul}", settings)
    if settings.local_dir or settings.membership_dir().is_dir():
        directory = settings.membership_dir()
        return _ask(_local(settings), f"directory {directory}", settings)
    return list(_DEV_SEEDS)


def with_scheme(address: str) -> str:
    """Return ``host:port`` as ``tcp://host:port``; other schemes stay."""
    return address if "://" in address else f"tcp://{address}"


def _local(settings: ClientSettings) -> Membership:
    from dstash.cluster.membership.local.membership import LocalMembership

    return LocalMembership(settings.membership_dir(), settings.cluster)


def _consul(settings: ClientSettings, patience: float) -> Membership:
    try:
        from dstash.cluster.membership.consul.membership import ConsulMembership
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"consul needs the package {error.name}: pip install 'dstash[consul]'"
        ) from None

    return ConsulMembership(
        settings.consul or "",
        settings.cluster,
        token=settings.token(),
        ca_file=settings.consul_ca_file,
        cert_file=settings.consul_cert_file,
        key_file=settings.consul_key_file,
        patience=patience,
    )


def _ask(membership: Membership, where: str, settings: ClientSettings) -> list[str]:
    try:
        topology = membership.read().topology
        alive = membership.alive()
    except MembershipError as error:
        raise NoPeers(str(error)) from None
    finally:
        membership.close()
    members = topology.members if topology else ()
    known: list[Announcement | Member] = [*alive.values(), *members]
    if not known:
        raise NoPeers(f"{where} knows no peer of cluster {settings.cluster!r}")
    addresses = [one.address if settings.curve else one.plain or one.address for one in known]
    return list(dict.fromkeys(addresses))
