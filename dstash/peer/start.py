"""The entry point of ``dstash-peer``. It imports only ``launch``, which must run first."""

from dstash.launch import launch


def main() -> None:
    """Load the daemon and run it."""
    launch(
        "dstash.peer.main",
        command="dstash-peer",
        extra="peer",
        packages=("typer", "prometheus_client", "structlog", "lmdb"),
    )
