"""The next step that the command line suggests after an error."""

from __future__ import annotations

from typing import Final

from dstash import errors

#: The first match counts, so subclasses come before their base classes.
_STEPS: Final[tuple[tuple[type[errors.DStashError], str], ...]] = (
    (errors.NoPeers, "start a cluster with dstash dev up, or set --peers or --consul"),
    (errors.Unavailable, "dstash status lists the peers that are down"),
    (errors.TimedOut, "dstash health shows what is wrong; --timeout allows more time"),
    (errors.Forming, "start the other peers; dstash status lists those that have joined"),
    (errors.NotReady, "dstash health --wait 60 waits until it is ready"),
    (errors.Busy, "try again later, or send less at once"),
    (errors.DiskFull, "free space on its disk, or add a peer"),
    (errors.WrongCluster, "select the cluster with --cluster NAME"),
    (errors.Unauthorised, "check authorised_keys of the peers; see docs/security.md"),
    (errors.ClockSkew, "synchronise the clocks with NTP"),
    (errors.MembershipUnreachable, "is it running, and reachable from here?"),
    (errors.CorruptStore, "see on_corrupt in conf/peer.toml"),
    (errors.StoreInUse, "stop the peer that uses it"),
)


def advice(error: errors.DStashError) -> str:
    """Return the suggested step, to append to the error message; empty if there is none."""
    if "advice" in error.details:  # more specific than the advice by type
        return str(error.details["advice"])
    step = next((text for kind, text in _STEPS if isinstance(error, kind)), "")
    if not step:
        return ""
    return f" {step}" if str(error).endswith("?") else f"; {step}"
