"""The settings of a peer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dstash.config.fields import (
    Advertise,
    CollectorUrl,
    Conflict,
    File,
    Host,
    Name,
    Port,
    Seconds,
    Url,
)
from dstash.config.hosts import is_loopback
from dstash.config.rules import Number
from dstash.config.shared import SharedSettings, state_dir
from dstash.limits import MAX_CLOCK_SKEW_MS, MAX_FRAME_BYTES, MIB
from dstash.types import Durability

Count = Annotated[int, Number(int, least=1)]
Milliseconds = Annotated[int, Number(int, least=1, most=60_000)]
#: 0 switches something off.
CountOrNone = Annotated[int, Number(int, least=0)]


@dataclass(frozen=True, kw_only=True)
class PeerSettings(SharedSettings):
    """The settings of one ``dstash-peer``. ``conf/peer.toml`` explains each of them.

    Attributes:
        id: None means the last component of the data directory.
        zone: None means the host name of the machine.
        local_dir: None means the result of ``membership_dir()``.
        http_port: None is off, 0 any free port.
        otlp_endpoint: the collector that receives traces; None is off.
        plain_port: a second port, without CURVE, for the migration of a cluster to CURVE.
        drain_seconds, down_out_after, hint_max_age: seconds.
    """

    data_dir: File
    bind: Host = "127.0.0.1"
    port: Port = 5000
    advertise: Advertise | None = None
    id: Name | None = None
    zone: Name | None = None
    weight: Annotated[float, Number(float, above=0, below=1e6)] = 1.0

    membership: Literal["local", "consul"] = "local"
    consul: Url = "http://127.0.0.1:8500"
    replicas: Annotated[int, Number(int, least=1, most=64)] = 3
    min_peers: Count = 1
    join: Literal["auto", "manual"] = "auto"
    down_out_after: Annotated[float, Number(float, least=0)] = 600.0

    durability: Durability = Durability.SYNC
    sync_interval_ms: Milliseconds = 1000
    max_clock_skew_ms: Milliseconds = MAX_CLOCK_SKEW_MS
    max_connections: Count = 10_000
    max_requests_in_hand: Count = 1024
    max_bytes_in_hand: Annotated[int, Number(int, least=2 * MAX_FRAME_BYTES)] = 128 * MIB
    hint_limit: CountOrNone = 100_000
    hint_max_age: Seconds = 10_800.0
    compare_interval: Seconds = 10.0
    gc_interval: Seconds = 30.0
    gc_grace: Seconds = 30.0
    repair_rate: CountOrNone = 32 * MIB
    disk_reserve: CountOrNone = 64 * MIB
    compact_when_free: Annotated[float, Number(float, least=0, below=1)] = 0.5
    compact_min_bytes: CountOrNone = 256 * MIB
    on_corrupt: Literal["stop", "resync"] = "stop"
    share_reads: bool = False
    drain_seconds: Seconds = 8.0

    http_bind: Host = "127.0.0.1"
    http_port: Port | None = None
    otlp_endpoint: CollectorUrl | None = None
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    insecure: bool = False
    authorised_keys: File | None = None
    plain_port: Port | None = None

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        super().__post_init__()
        # CURVE without a list of keys accepts any key, so the list is required.
        self._check_curve(needed=("authorised_keys",))
        self._check_consul_tls(self.consul)
        if self.plain_port is not None and not self.curve:
            raise Conflict("plain_port", "has no effect without curve = true; remove it")
        is_closed = self.curve and self.plain_port is None
        if not (is_loopback(self.bind) or is_closed or self.insecure):
            raise Conflict(
                "bind",
                "other machines could read and write all data on this address: set curve = true, "
                "or insecure = true if the network is trusted",
            )

    def membership_dir(self) -> Path:
        """Return the directory of the local membership."""
        return self.local_dir or state_dir(self.cluster)
