"""What a user may do next about an error."""

from __future__ import annotations

from typing import Final

from dstash import errors

#: The first that fits counts, so the special ones stand before their families.
_NEXT: Final[tuple[tuple[type[errors.DStashError], str], ...]] = (
    (errors.NoPeers, "try dstash dev up, or say where it is with --peers or --consul"),
    (errors.Unavailable, "dstash status shows who is away"),
    (errors.TimedOut, "dstash health says what is wrong; --timeout gives it longer"),
    (errors.Forming, "start the other peers; dstash status shows who is there"),
    (errors.NotReady, "dstash health --wait 60 waits for it"),
    (errors.Busy, "try again in a moment, or send less at once"),
    (errors.DiskFull, "make room on its disk, or add a peer"),
    (errors.WrongCluster, "--cluster NAME says which one is meant"),
    (errors.Unauthorised, "the peers' authorised_keys decide; see docs/security.md"),
    (errors.ClockSkew, "set the clocks, by NTP"),
    (errors.MembershipUnreachable, "is it running, and reachable from here?"),
    (errors.CorruptStore, "see on_corrupt in conf/peer.toml"),
    (errors.StoreInUse, "stop the peer that uses it"),
)


def advice(error: errors.DStashError) -> str:
    """Return the next step, as the end of a line that tells of ``error``; or nothing."""
    if "advice" in error.details:  # whoever raised it knows better
        return str(error.details["advice"])
    step = next((text for kind, text in _NEXT if isinstance(error, kind)), "")
    if not step:
        return ""
    return f" {step}" if str(error).endswith("?") else f"; {step}"
