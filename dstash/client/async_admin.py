"""Administration of a cluster with the asyncio client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dstash.client.calls import Calls
from dstash.client.describe import describe_cluster
from dstash.client.operations.base import Operation
from dstash.client.tracing.hook import Tracing
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.wire.messages import AdminRequest


class AsyncAdmin:
    """Admin requests of an asyncio client: ``client.admin``.

    Arguments, results and errors are those of ``Admin``.
    """

    def __init__(
        self,
        view: Callable[[float | None], Awaitable[View]],
        run: Callable[[Operation], Awaitable[Any]],
        calls: Callable[[], Calls],
        tracing: Tracing,
    ) -> None:
        self._view = view
        self._run = run
        self._calls = calls
        self._tracing = tracing

    async def add(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Add peers that wait to be added."""
        return await self.request("add", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    async def remove(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Remove members; their partitions are streamed to the other members first."""
        return await self.request("remove", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    async def replace(
        self,
        old: str,
        new: str,
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Replace a member by a peer that waits to be added; each partition moves once."""
        return await self.request(
            "replace", [old, new], rate=rate, dry_run=dry_run, timeout=timeout
        )

    async def forget(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Remove members that are down; other replicas copy their partitions from each other."""
        return await self.request("forget", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    async def force_remove(
        self, peers: Sequence[str], *, dry_run: bool = False, timeout: float | None = None
    ) -> Topology:
        """Remove members that are down, even if a topology change waits for them."""
        return await self.request("force-remove", peers, dry_run=dry_run, timeout=timeout)

    async def accept_loss(
        self, peers: Sequence[str], *, dry_run: bool = False, timeout: float | None = None
    ) -> Topology:
        """Go on without the writes that only these members may have; see docs/operations.md."""
        return await self.request("accept-loss", peers, dry_run=dry_run, timeout=timeout)

    async def cancel(self, *, dry_run: bool = False, timeout: float | None = None) -> Topology:
        """Cancel the topology change: placement returns to what it was before."""
        return await self.request("cancel", dry_run=dry_run, timeout=timeout)

    async def pause(self, *, dry_run: bool = False, timeout: float | None = None) -> Topology:
        """Pause the topology change; requests are still served."""
        return await self.request("pause", dry_run=dry_run, timeout=timeout)

    async def resume(self, *, dry_run: bool = False, timeout: float | None = None) -> Topology:
        """Resume a paused topology change."""
        return await self.request("resume", dry_run=dry_run, timeout=timeout)

    async def rate(
        self, rate: int, *, dry_run: bool = False, timeout: float | None = None
    ) -> Topology:
        """Limit how fast each member streams its new partitions in."""
        return await self.request("rate", rate=rate, dry_run=dry_run, timeout=timeout)

    async def lower_floors(
        self, *, dry_run: bool = False, timeout: float | None = None
    ) -> Topology:
        """Lower floors that are ahead of the cluster clock; see docs/operations.md."""
        return await self.request("lower-floors", dry_run=dry_run, timeout=timeout)

    async def repair(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Start a full repair on every member."""
        with self._tracing.call("repair"):
            view = await self._view(timeout)
            answers = await self._run(self._calls().repair(view, timeout))
            return describe_cluster(view, answers)

    async def request(
        self,
        action: str,
        peers: Sequence[str] = (),
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Send an admin request by its name."""
        with self._tracing.call(action):
            request = AdminRequest(action, list(peers), rate, dry_run)
            await self._view(timeout)
            topology: Topology = await self._run(self._calls().admin(request, timeout))
            return topology
