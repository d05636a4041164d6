"""Where ``dstash-peer`` starts. Imports next to nothing, so that ``launch`` comes first."""

from dstash.launch import launch


def main() -> None:
    """Load the daemon and run it."""
    launch("dstash.peer.main")
