"""The names that traces of clients and peers share.

The attributes are those of OpenTelemetry's semantic conventions for databases; the names of
additional ones begin with ``dstash.``. https://opentelemetry.io/docs/specs/semconv/database/
"""

from __future__ import annotations

from typing import Final

from dstash.errors import ConfigError

#: The name of dstash as a database system and as the source of spans.
SYSTEM: Final = "dstash"

DB_SYSTEM: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_COLLECTION: Final = "db.collection.name"
DB_OPERATION: Final = "db.operation.name"
DB_BATCH_SIZE: Final = "db.operation.batch.size"
DB_RETURNED: Final = "db.response.returned_rows"
DB_STATUS: Final = "db.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"


def missing(setting: str) -> ConfigError:
    """Return the error that names the extra a setting needs."""
    return ConfigError(f"{setting} needs OpenTelemetry: pip install 'dstash[otel]'")
