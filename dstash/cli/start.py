"""The entry point of ``dstash``. It imports only ``launch``, which must run first."""

from dstash.launch import launch


def main() -> None:
    """Load the command line and run it."""
    launch(
        "dstash.cli.main",
        command="dstash",
        extra="cli",
        packages=("typer", "rich", "prompt_toolkit", "structlog", "lmdb"),
    )
