"""Where ``dstash`` starts. Imports next to nothing, so that ``launch`` comes first."""

from dstash.launch import launch


def main() -> None:
    """Load the command line and run it."""
    launch("dstash.cli.main")
