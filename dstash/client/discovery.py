"""Discovery of the first peers of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Member, TransportSecurity
from dstash.config.client import ClientSettings
from dstash.errors import ConfigError, MembershipError, NoPeers
from dstash.logger import Logger
from dstash.wire.curve import KeyPair

_log = Logger("dstash.client")

# Membership backends are imported where they are used: most clients need none, and the HTTP library
# for Consul takes longer to load than the rest of a short command.


class Source(Protocol):
    """The part of a ``Membership`` that clients use."""

    def read(self) -> StoredTopology:
        """Return the topology that is stored now."""

    def alive(self) -> Mapping[str, Announcement]:
        """Return the announcements of live peers by peer."""

    def close(self) -> None:
        """Release what it holds."""


def identity(settings: ClientSettings) -> KeyPair | None:
    """Return the keys of the client, None without CURVE.

    Raises:
        ConfigError: a key file is invalid.
    """
    if settings.cert_file is None or settings.key_file is None:
        return None  # the configuration accepts either both or neither
    return KeyPair.load(settings.cert_file, settings.key_file)


def security_of(settings: ClientSettings) -> TransportSecurity:
    """Return the transport security of the client."""
    return TransportSecurity.CLOSED if settings.curve else TransportSecurity.OPEN


def find_seeds(settings: ClientSettings, timeout: float) -> list[str]:
    """Return addresses of peers: from the settings, the membership, or the local default.

    With CURVE each address is combined with each key of ``server_key``, because the client does not
    know yet which key the peer has. Keys in the membership are ignored: they prove nothing.

    Args:
        settings: of the client.
        timeout: seconds for each answer of Consul.

    Raises:
        NoPeers: the membership lists no peer of the cluster, or does not answer.
    """
    addresses = _addresses(settings, timeout)
    _log.debug("looking for peers", cluster=settings.cluster, addresses=addresses)
    if not settings.curve:
        return addresses
    return [f"{address} {key}" for address in addresses for key in settings.server_key or ()]


def _addresses(settings: ClientSettings, timeout: float) -> list[str]:
    if settings.peers:
        return [with_scheme(peer) for peer in settings.peers]
    if settings.consul:
        return _read(_consul(settings, timeout), f"Consul at {settings.consul}", settings)
    fallback = settings.fallback()
    if fallback is None or fallback.key == "local_dir":
        directory = settings.membership_dir()
        return _read(_local(settings), f"directory {directory}", settings)
    return list(fallback.value)


def with_scheme(address: str) -> str:
    """Return ``host:port`` as ``tcp://host:port``; an address with a scheme stays as it is."""
    return address if "://" in address else f"tcp://{address}"


def _local(settings: ClientSettings) -> Source:
    try:
        from dstash.cluster.membership.local.reader import LocalReader
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"local_dir needs file locks, which this system lacks (module {error.name}); "
            "set peers or consul instead"
        ) from None

    try:
        return LocalReader(settings.membership_dir(), settings.cluster)
    except MembershipError as error:
        raise NoPeers(f"{error}; is local_dir right, and is a peer running?") from None


def _consul(settings: ClientSettings, timeout: float) -> Source:
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
        patience=timeout,
    )


def _read(membership: Source, where: str, settings: ClientSettings) -> list[str]:
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
        raise NoPeers(f"{where} lists no peer of cluster {settings.cluster!r}")
    addresses = [peer.address if settings.curve else peer.plain or peer.address for peer in known]
    return list(dict.fromkeys(addresses))
