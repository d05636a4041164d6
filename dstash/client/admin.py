"""Administration of a cluster: ``client.admin``, of the blocking and of the asyncio client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, Unpack

from dstash.client.calls import Calls, SettingsOptions
from dstash.client.describe import describe_cluster
from dstash.client.operations.base import Operation
from dstash.client.tracing.hook import Tracing
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.wire.messages import AdminRequest

T = TypeVar("T")
S = TypeVar("S")


class AdminRequests(ABC, Generic[T, S]):
    """The admin requests of a client that returns results or awaitables of results.

    A subclass sends them; ``T`` is what it returns for a topology, ``S`` for a status.
    """

    def add(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Add peers that wait to be added.

        Args:
            peers: ids of candidates; see ``status``.
        """
        return self.request("add", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    def remove(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Remove members; their partitions are streamed to the other members first.

        Args:
            peers: ids of members.
        """
        return self.request("remove", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    def replace(
        self,
        old: str,
        new: str,
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Replace a member by a peer that waits to be added; each partition moves once.

        Args:
            old: id of the member.
            new: id of the candidate.
        """
        return self.request("replace", [old, new], rate=rate, dry_run=dry_run, timeout=timeout)

    def forget(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Remove members that are down; other replicas copy their partitions from each other.

        Args:
            peers: ids of members.
        """
        return self.request("forget", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    def force_remove(
        self,
        peers: Sequence[str],
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Remove members that are down, even if a topology change waits for them.

        Args:
            peers: ids of members.
        """
        return self.request("force-remove", peers, rate=rate, dry_run=dry_run, timeout=timeout)

    def accept_loss(
        self, peers: Sequence[str], *, dry_run: bool = False, timeout: float | None = None
    ) -> T:
        """Continue without writes that only these members may have; see docs/operations.md.

        Args:
            peers: ids of members.
        """
        return self.request("accept-loss", peers, dry_run=dry_run, timeout=timeout)

    def cancel(self, *, dry_run: bool = False, timeout: float | None = None) -> T:
        """Cancel the topology change and return to the previous placement."""
        return self.request("cancel", dry_run=dry_run, timeout=timeout)

    def pause(self, *, dry_run: bool = False, timeout: float | None = None) -> T:
        """Pause the topology change; requests are still served."""
        return self.request("pause", dry_run=dry_run, timeout=timeout)

    def resume(self, *, dry_run: bool = False, timeout: float | None = None) -> T:
        """Resume a paused topology change."""
        return self.request("resume", dry_run=dry_run, timeout=timeout)

    def rate(self, rate: int, *, dry_run: bool = False, timeout: float | None = None) -> T:
        """Limit how fast each member streams its new partitions in.

        Args:
            rate: bytes per second; 0 for the default, see docs/operations.md.
        """
        return self.request("rate", rate=rate, dry_run=dry_run, timeout=timeout)

    def lower_floors(self, *, dry_run: bool = False, timeout: float | None = None) -> T:
        """Lower floors that are ahead of the cluster clock; see docs/operations.md."""
        return self.request("lower-floors", dry_run=dry_run, timeout=timeout)

    @abstractmethod
    def set_index(
        self, index: str, *, timeout: float | None = None, **settings: Unpack[SettingsOptions]
    ) -> T:
        """Change the settings of an index."""

    @abstractmethod
    def repair(self, *, timeout: float | None = None) -> S:
        """Start a full repair on every member."""

    @abstractmethod
    def compact(self, peer: str, *, timeout: float | None = None) -> S:
        """Start a compaction of the store of a member."""

    @abstractmethod
    def request(
        self,
        action: str,
        peers: Sequence[str] = (),
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Send an admin request by its name."""


class Admin(AdminRequests[Topology, dict[str, Any]]):
    """Admin requests of a client: ``client.admin``.

    A closed cluster takes them only with the key of an admin. Each returns the topology with the
    change in it; data moves afterwards, and ``status`` shows how far it is. Each takes ``timeout``,
    in seconds for the whole call. With ``dry_run`` nothing changes, and the returned topology is
    the one that the request would lead to. ``rate`` limits how many bytes per second each member
    streams in; 0 selects the default, see docs/operations.md.

    Raises:
        ChangeConflict: the request is not possible now; the text says why.
        TimedOut: the answer was lost. The request may be carried out or not; it was not sent twice.
    """

    def __init__(
        self,
        view: Callable[[int], View],
        run: Callable[[Operation], Any],
        calls: Callable[[], Calls],
        tracing: Tracing,
    ) -> None:
        self._view = view
        self._run = run
        self._calls = calls
        self._tracing = tracing

    def set_index(
        self, index: str, *, timeout: float | None = None, **settings: Unpack[SettingsOptions]
    ) -> Topology:
        """Change the settings of an index, which peers apply to the writes of all clients.

        Settings that are not given stay. Records that are stored already keep their expiry. When
        the call returns, all later writes at quorum have the settings; see docs/consistency.md.

        Args:
            index: name of the keyspace; it need not have records yet.
            ttl: the time to live, in seconds or as a timedelta, of puts that have none; None to
                remove this setting.
            max_ttl: the longest time to live of a put or touch: a longer one, or none, is cut to
                it; None to remove this setting.
            timeout: seconds for the whole call.

        Returns:
            the topology, with the settings of all indexes.

        Raises:
            LimitError: the index or a time is not allowed.
            UsageError: no setting, or an unknown one, is given.
            ChangeConflict: a member runs an earlier version, or too many indexes have settings.
            Unauthorised: the key is not that of an admin.
            TimedOut: the settings may be changed or not, or too few peers know them yet.
        """
        with self._tracing.call("set_index", index):
            deadline = self._calls().deadline(timeout)
            self._view(deadline)
            topology: Topology = self._run(self._calls().set_index(index, settings, deadline))
            return topology

    def repair(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Start a full repair on every member.

        Every member verifies all its records and compares them with the other replicas.

        Returns:
            The same as ``status``. Each member that answers reports its progress under
            ``maintenance``; its repair has completed when ``ended`` under ``repair`` has increased.

        Raises:
            Unauthorised: the key is not that of an admin.
            Unavailable: no member started the repair within 5 s, or within the timeout.
        """
        with self._tracing.call("repair"):
            deadline = self._calls().deadline(timeout)
            view = self._view(deadline)
            answers = self._run(self._calls().repair(view, deadline))
            return describe_cluster(view, answers)

    def compact(self, peer: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Start a compaction of the store of a member, which serves meanwhile.

        Args:
            peer: the id of the member.
            timeout: seconds for the whole call.

        Returns:
            the status of the member. Its progress is under ``compaction``; it has completed when
            ``ended`` has increased, and was given up when ``given_up`` has.

        Raises:
            Busy: a compaction of the member runs already.
            Unauthorised: the key is not that of an admin.
            Unavailable: the member did not answer within 5 s, or within the timeout.
            UsageError: there is no such member.
        """
        with self._tracing.call("compact"):
            deadline = self._calls().deadline(timeout)
            view = self._view(deadline)
            answers: dict[str, dict[str, Any]] = self._run(
                self._calls().compact(view, peer, deadline)
            )
            return answers[peer]

    def request(
        self,
        action: str,
        peers: Sequence[str] = (),
        *,
        rate: int = 0,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Send an admin request by its name, for programs that get the name as text.

        Args:
            action: the name of the command of ``dstash cluster``, such as ``add``.
            peers: ids of the peers that it is about.
            rate: bytes per second that each member may stream in; 0 for the default.
            dry_run: change nothing.
            timeout: seconds for the whole call.
        """
        with self._tracing.call(action):
            deadline = self._calls().deadline(timeout)
            self._view(deadline)
            wanted = AdminRequest(action, list(peers), rate, dry_run)
            topology: Topology = self._run(self._calls().admin(wanted, deadline))
            return topology


class AsyncAdmin(AdminRequests[Awaitable[Topology], Awaitable[dict[str, Any]]]):
    """Admin requests of an asyncio client: ``client.admin``.

    Arguments, results and errors are those of ``Admin``.
    """

    def __init__(
        self,
        view: Callable[[int], Awaitable[View]],
        run: Callable[[Operation], Awaitable[Any]],
        calls: Callable[[], Calls],
        tracing: Tracing,
    ) -> None:
        self._view = view
        self._run = run
        self._calls = calls
        self._tracing = tracing

    async def set_index(
        self, index: str, *, timeout: float | None = None, **settings: Unpack[SettingsOptions]
    ) -> Topology:
        """Change the settings of an index; see ``Admin.set_index``."""
        with self._tracing.call("set_index", index):
            deadline = self._calls().deadline(timeout)
            await self._view(deadline)
            operation = self._calls().set_index(index, settings, deadline)
            topology: Topology = await self._run(operation)
            return topology

    async def repair(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Start a full repair on every member."""
        with self._tracing.call("repair"):
            deadline = self._calls().deadline(timeout)
            view = await self._view(deadline)
            answers = await self._run(self._calls().repair(view, deadline))
            return describe_cluster(view, answers)

    async def compact(self, peer: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Start a compaction of the store of a member; see ``Admin.compact``."""
        with self._tracing.call("compact"):
            deadline = self._calls().deadline(timeout)
            view = await self._view(deadline)
            answers: dict[str, dict[str, Any]] = await self._run(
                self._calls().compact(view, peer, deadline)
            )
            return answers[peer]

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
            deadline = self._calls().deadline(timeout)
            await self._view(deadline)
            wanted = AdminRequest(action, list(peers), rate, dry_run)
            topology: Topology = await self._run(self._calls().admin(wanted, deadline))
            return topology
