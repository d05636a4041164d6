"""The settings of peers and clients: flag, then ``DSTASH_*``, then TOML file, then default."""

from dstash.config.client import ClientSettings, Security
from dstash.config.layers import LOCK_TOKEN, Layered, keys_of, layered, unknown_variables
from dstash.config.load import load_client, load_peer
from dstash.config.peer import PeerSettings
from dstash.config.shared import SharedSettings

__all__ = [
    "LOCK_TOKEN",
    "ClientSettings",
    "Layered",
    "PeerSettings",
    "Security",
    "SharedSettings",
    "keys_of",
    "layered",
    "load_client",
    "load_peer",
    "unknown_variables",
]
