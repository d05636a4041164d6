"""The verdict on a cluster: pure functions from its status to what is wrong, and what to do next.

Quorums and copies are in the words of the dashboard (``dstash.cluster.topology.copies``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dstash.cli.units import size

#: The badness of an alert if requests fail.
_REQUESTS_FAIL: Final = 2


def unhealthy_because(cluster: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a cluster with this status is unhealthy; empty if it is healthy."""
    members = cluster["members"]
    alerts = cluster["alerts"]
    reasons = [alert["text"] for alert in alerts if alert["badness"] == _REQUESTS_FAIL]
    reasons += [f"{member['id']} {text}" for member in members for text in problems(member)]
    if not cluster["formed"]:
        reasons.append(f"{len(members)} of {cluster['min_peers']} peers have joined")
    return reasons + [alert["text"] for alert in alerts if alert["badness"] < _REQUESTS_FAIL]


def problems(member: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a member."""
    if not member["alive"]:
        return ["is not alive"]
    if not member["answers"]:
        return ["does not answer"]
    if not member["synced"]:
        return ["is not synced"]
    reason = member.get("why_not_ready", "")
    return [*([f"is not ready: {reason}"] if reason else []), *member.get("alerts", ())]


def status_word(cluster: Mapping[str, Any]) -> str:
    """Return the verdict in a word: healthy, or as the dashboard calls it."""
    if not unhealthy_because(cluster):
        return "healthy"
    fails = any(alert["badness"] == _REQUESTS_FAIL for alert in cluster["alerts"])
    return "broken" if fails or not cluster["formed"] else "degraded"


def verdict(reasons: Sequence[str], notes: Sequence[str] = (), word: str = "unhealthy") -> str:
    """Return one line: whether the cluster is healthy, and notes on missing keys.

    Args:
        word: for a cluster that is not.
    """
    state = f"{word}: {'; '.join(reasons)}" if reasons else "healthy"
    return ", ".join((state, *notes))


def shortfalls(cluster: Mapping[str, Any]) -> list[str]:
    """Return notes on keys that replicas are known to miss in a cluster with this status."""
    notes = [_shortfall(missing) for missing in cluster["missing"]]
    if count := cluster["differing"]:
        differ = "1 partition differs" if count == 1 else f"{count:,} partitions differ"
        notes.append(f"{differ} between replicas")
    return notes


def set_aside(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each store that a member has set aside."""
    return [
        f"{member['id']} has set aside a store: {name} ({size(count)}); delete it when it is not "
        "needed"
        for member in members
        for name, count in member.get("set_aside", {}).items()
    ]


def _shortfall(missing: Mapping[str, Any]) -> str:
    keys, partitions = missing["keys"], missing["partitions"]
    amounts = [f"{keys:,} {'key' if keys == 1 else 'keys'}"] if keys else []
    if partitions:
        named = "1 partition" if partitions == 1 else f"{partitions:,} partitions"
        amounts.append(f"some keys of {named}")
    return f"{' and '.join(amounts)} still missing on {missing['peer']}"


def next_steps(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an operator can do about a cluster with this status.

    The alerts and ``waits`` have their own remedies; these are for the members.
    """
    members = cluster["members"]
    if not cluster["formed"]:
        missing = cluster["min_peers"] - len(members)
        yield f"start {missing} more: requests are served once {cluster['min_peers']} have joined"
    down = [member["id"] for member in members if not member["alive"]]
    if down and cluster["quorum_lost"]:
        yield f"start {' and '.join(down)}; remove no member while a quorum is lost"
    elif down:
        yield f"start {' and '.join(down)}; {_without(cluster, down)}"
    silent = [member["id"] for member in members if member["alive"] and not member["answers"]]
    if silent:
        yield f"look at the log of {' and '.join(silent)}, and at the network to it"
    if any(member["answers"] and not member["synced"] for member in members):
        yield "wait until all data is streamed; the table shows how far it is"


def _without(cluster: Mapping[str, Any], down: Sequence[str]) -> str:
    """Return how to continue if members never return."""
    if len(cluster["members"]) - len(down) >= cluster["replicas"]:
        return f"if it never comes back: dstash cluster forget {' '.join(down)}"
    return (
        'if it never comes back, start a new peer with join = "manual": '
        f"dstash cluster replace {down[0]} NEW"
    )
