"""The membership agent: announces a peer, joins it, and follows the topology, on one thread.

While the membership does not answer, the peer serves with the view it has, and the agent retries.
"""

from __future__ import annotations

import random as randomness
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from dstash import events, threads
from dstash.cluster.membership.interface import Membership, StoredTopology, may_pass
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.drop_steps import with_drop
from dstash.cluster.topology.indexes.steps import with_settings
from dstash.cluster.topology.joining import KEPT, last_known, was_in_cluster, with_seen
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import Proposal, requested
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict, DStashError, MembershipUnreachable
from dstash.peer.admission.admin_requests import OperatorRequest
from dstash.peer.supervision.complaints import Complaints
from dstash.peer.topology_steps import Known, TopologySteps, is_removed, unconfirmed_because
from dstash.store.interface import Store
from dstash.wire.messages import (
    AdminReply,
    AdminRequest,
    DropRequest,
    Error,
    IndexSettingsRequest,
)
from dstash.wire.shapes import Message

_log = structlog.get_logger("dstash.peer")

#: How long (seconds) to wait for a change before reading the membership anyway.
_WATCH_TIMEOUT_S = 2.0

#: How long (seconds) the membership may take to answer before the peer uses the topology of another
#: member. It is less than the time for which requests of a future epoch wait.
_ANSWER_LIMIT_S = 0.3

#: After this long (seconds) without reading, it is not known which peers were down throughout.
_MAX_GAP_S = 5 * _WATCH_TIMEOUT_S

#: Sources of problems.
_MEMBERSHIP = "membership"
_TOPOLOGY = "topology"
_CONSEQUENCE = "data is served with the last view, and no peer can join or leave"

#: How long (seconds) a stop waits for this thread: the membership may block it, and a supervisor
#: kills the process after 10.
_STOP_TIMEOUT_S = 4.0


class MembershipAgent:
    """Keeps one peer a member of its cluster, and its view current.

    Args:
        waits_to_be_added: join a formed cluster only by an admin request.
        down_out_after: seconds after which a member that is down is removed; 0 for never.
        publish: called with each new view, on this thread.
        show: called with a source and its problem, or "" when the problem is over.
        removed: called when the peer is no longer a member.
        was_removed: the peer was removed before; it joins only by an admin request.
        added: called when such a peer is a member again.
        failed: called with the reason when this peer cannot be in the cluster.
        report_wait: called with the reason why this peer has no view yet.
        seen: returns, by store id, the newest life that this peer has seen.
        clock: returns monotonic seconds.
        random: returns a number from 0 to 1.
    """

    def __init__(
        self,
        membership: Membership,
        announcement: Announcement,
        store: Store,
        *,
        cluster: str,
        replicas: int,
        min_peers: int,
        waits_to_be_added: bool,
        down_out_after: float,
        publish: Callable[[View], None],
        removed: Callable[[], None],
        was_removed: bool = False,
        added: Callable[[], None] = lambda: None,
        report_wait: Callable[[str], None] = lambda text: None,
        show: Callable[[str, str], None] = lambda source, text: None,
        seen: Callable[[], Mapping[str, Life]] = dict,
        failed: Callable[[DStashError], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self._membership = membership
        self._announcement = announcement
        self._store = store
        self._waits_to_be_added = waits_to_be_added or was_removed
        self._publish = publish
        self._removed = removed
        self._is_removed = was_removed
        self._added = added
        self._report_wait = report_wait
        self._waits = ""
        self._show = show
        self._clock = clock
        self._seen = seen
        self._failed = failed
        self._proposals: deque[Proposal] = deque()
        self._admin_requests: deque[tuple[OperatorRequest, Callable[[Message], None]]] = deque()
        self._view: View | None = None
        #: A topology that this peer uses but could not store yet.
        self._unkept: Topology | None = None
        #: When the first request began that the membership has not answered; None if it has.
        self._unanswered_since: float | None = None
        #: The view of another member that is in use; None when the membership's is.
        self._heard: View | None = None
        self._views = threading.RLock()
        #: Whether the membership has had this peer's cluster since this process began.
        self._was_there = False
        self._has_read = False
        self._is_announced = False
        #: Whether a restored topology waits for other members.
        self._waits_for_others = False
        self._problems: dict[str, str] = {}
        self._complaints = Complaints("an iteration of the membership thread failed", clock)
        self._steps = TopologySteps(
            announcement,
            store,
            lambda: self._membership.alive(),
            self._proposals,
            cluster=cluster,
            replicas=replicas,
            min_peers=min_peers,
            waits_to_be_added=self._waits_to_be_added,
            down_out_after=down_out_after,
            max_gap=_MAX_GAP_S,
            complaints=self._complaints,
            clock=clock,
            random=random,
        )
        self._iteration_began: float | None = None
        self._stop = threading.Event()
        self._thread = threads.thread(self._run, name="membership", may_end=self._stop.is_set)

    def join(self) -> View | None:
        """Take the lock and a place in the topology; returns the first view.

        There is no view while a restored topology waits for a majority of its members. If the
        membership does not answer, see ``go_without``.

        Raises:
            PeerIdInUse: a live process has this id.
            ForeignStore: the store belongs to another cluster.
            MembershipUnreachable: the membership refuses access, and this peer has no topology of
                a formed cluster on its disk.
        """
        try:
            self._announce()
            self._look()
        except MembershipUnreachable as error:
            if not may_wait(error, self._store):
                raise
            self.go_without(error)
        return self._view

    def go_without(self, error: MembershipUnreachable) -> None:
        """Continue although the membership does not answer.

        A peer without a view uses the topology in its store, if it was a member with that store;
        it takes its lock as soon as the membership answers. Otherwise it waits.
        """
        self._await_answer()
        problem = f"the membership is out of reach ({error}): "
        before = self._view
        if before is None and not self._has_read:
            self._view = self._kept_view()
        if self._view is None:
            self._wait(f"{problem}this peer has no topology on its disk, and waits")
        elif not self._is_announced:
            problem += "this peer has started with the topology on its disk; "
        self._note(_MEMBERSHIP, problem + _CONSEQUENCE)
        if self._view is not before and self._view is not None:
            self._publish(self._view)  # after the problem: no peer is ready without saying so

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def refresh(self) -> None:
        """Read the membership soon."""
        self._membership.wake()

    def hear(self, topology: Topology) -> None:
        """Use the topology of another member, unless the membership answers soon.

        The peer's loop calls this again and again while it has no view of that epoch: this agent's
        own thread may be waiting for the membership. The topology is neither stored nor written to
        the membership, because only that member vouches for it.
        """
        since = self._unanswered_since
        if since is None or self._clock() - since < _ANSWER_LIMIT_S:
            return
        with self._views:
            used = self._heard or self._view
            if self._view is None or used is None or topology.epoch <= used.epoch:
                return
            if topology.cluster_id != self._view.topology.cluster_id:
                return
            _log.warning(events.TOPOLOGY_OF_MEMBER, epoch=topology.epoch)
            # Liveness is not known: requests find out which members are down.
            alive = frozenset(member.id for member in topology.members)
            self._heard = View(topology, alive, is_kept=False)
            self._publish(self._heard)

    def propose(self, proposals: Iterable[Proposal]) -> None:
        """Apply topology steps soon, and retry each until it is applied or no longer needed."""
        self._proposals.extend(proposals)
        self._membership.wake()

    def administer(self, request: OperatorRequest, answer: Callable[[Message], None]) -> None:
        """Carry out an admin request soon; ``answer`` is called on the agent's thread."""
        self._admin_requests.append((request, answer))
        self._membership.wake()

    def stop(self) -> None:
        """Stop watching and release the lock; the peer stays a member."""
        self._stop.set()
        self._membership.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=_STOP_TIMEOUT_S)
        self._membership.close()

    @property
    def problem(self) -> str:
        """The problems between this peer and the membership, as text; empty when there are none."""
        return "; ".join(self._problems.values())

    def seconds_since_iteration(self) -> float:
        """Return the age of the thread's present iteration; 0 when the thread does not run."""
        return 0.0 if self._iteration_began is None else time.monotonic() - self._iteration_began

    def _announce(self) -> None:
        self._await_answer()
        self._membership.announce(self._announcement)
        self._is_announced = True

    def _await_answer(self) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()

    def _kept_view(self) -> View | None:
        """Return a view of the topology on disk if this peer was a member with this store."""
        kept = last_known(self._store)
        member = kept.member(self._announcement.peer) if kept is not None else None
        if kept is None or member is None or not kept.formed:
            return None
        if member.store_id != self._announcement.store_id:
            return None
        _log.warning(events.TOPOLOGY_ON_DISK, epoch=kept.epoch)
        # Liveness is not known: requests find out which members are down.
        return View(kept, frozenset(member.id for member in kept.members))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._iteration_began = time.monotonic()
            self._stop.wait(self._iterate())
        self._iteration_began = None

    def _iterate(self) -> float:
        """Wait for a change and apply it; returns the seconds until the next iteration."""
        try:
            if self._is_announced:
                self._membership.watch(_WATCH_TIMEOUT_S)
            else:
                self._announce()
            if not self._stop.is_set():
                self._carry_out_admin_requests()
                self._look()
        except MembershipUnreachable as error:
            self.go_without(error)
            return 0.5
        except DStashError as error:
            self._unanswered_since = None
            if not (self._was_there or self._waits_for_others):
                self._failed(error)  # as at the start if the membership had answered
                self._stop.set()
                return 0.0
            self._complaints.log(error)
            self._note(_MEMBERSHIP, f"the membership is at odds with this peer: {error}")
            return 1.0
        except Exception as error:  # a defect: the next iteration may avoid it
            self._unanswered_since = None
            self._complaints.log(error)
            self._note(_MEMBERSHIP, f"the membership thread failed and tries again: {error!r}")
            return 1.0
        self._note(_MEMBERSHIP, "")
        return 0.0

    def _note(self, source: str, text: str) -> None:
        """Log and show the problem of a source, or its end, when that has changed."""
        before = self._problems.get(source, "")
        if text == before:
            return
        if not text:
            del self._problems[source]
            _log.info(events.PROBLEM_OVER, problem=before)
        else:
            self._problems[source] = text
            if not before:
                _log.warning(events.PROBLEM, problem=text)
        self._show(source, text)

    def _carry_out_admin_requests(self) -> None:
        while self._admin_requests:
            request, answer = self._admin_requests[0]
            try:
                answer(AdminReply(self._carry_out(request).encode()))
            except DStashError as error:
                answer(Error.of(error))
            except Exception as error:  # a defect: the request must not fail each iteration
                self._complaints.log(error)
                answer(Error.of(DStashError(f"the admin request failed: {error!r}")))
            self._admin_requests.popleft()

    def _carry_out(self, request: OperatorRequest) -> Topology:
        while True:
            stored = self._membership.read()
            if stored.topology is None:
                raise ChangeConflict("there is no topology yet")
            if stored.topology.restored is not None:
                raise ChangeConflict(unconfirmed_because(stored.topology))
            self._steps.check_newest(stored.topology, self._last())
            wanted = self._requested(stored.topology, request)
            if wanted == stored.topology:
                return wanted
            wanted = with_seen(wanted, self._seen())
            is_dry = isinstance(request, AdminRequest) and request.dry
            if is_dry or self._membership.compare_and_set(wanted, stored.token):
                _log_request(request)
                return wanted

    def _requested(self, topology: Topology, request: OperatorRequest) -> Topology:
        """Return the topology that results from a request."""
        if isinstance(request, DropRequest):
            return with_drop(topology, request.index, request.prefix, request.stamp)
        if isinstance(request, IndexSettingsRequest):
            return with_settings(topology, request.index, request.settings, request.stamp)
        return requested(
            topology,
            self._membership.alive(),
            request.action,
            request.peers,
            request.rate,
            request.stamp,
        )

    def _look(self) -> None:
        """Apply the steps that are due in the topology, and publish the view."""
        self._await_answer()
        while True:
            stored = self._membership.read()
            self._has_read = True
            step = self._next_step(stored)
            if step is None:
                break
            if self._membership.compare_and_set(step, stored.token):
                self._steps.finish(step, stored)
        if stored.topology is not None:
            self._adopt(stored.topology)
        self._keep_again()
        self._unanswered_since = None

    def _next_step(self, stored: StoredTopology) -> Topology | None:
        """Return the next topology; None when no step is due."""
        heard = self._heard.topology if self._heard is not None else None
        known = Known(self._view, self._last(), was_there=self._was_there, heard=heard)
        step = self._steps.next_change(stored, known)
        if step is None:
            return None
        self._steps.begin(step, stored)
        return with_seen(step, self._seen())

    def _last(self) -> Topology | None:
        return last_known(self._store) if self._view is None else self._view.topology

    def _wait(self, why: str) -> None:
        """Report why this peer does not use the topology yet, when that has changed."""
        if why and why != self._waits:
            _log.warning(events.PEER_WAITS, why=why)
        if why != self._waits:
            self._waits = why
            self._report_wait(why)

    def _adopt(self, topology: Topology) -> None:
        self._steps.check_cluster(topology)
        self._wait(unconfirmed_because(topology) or self._not_added_because(topology))
        self._waits_for_others = topology.restored is not None
        if topology.restored is not None:
            return
        self._was_there = True
        if is_removed(self._announcement.peer, self._view, topology):
            _log.info(events.PEER_REMOVED, epoch=topology.epoch)
            self._stop.set()
            self._removed()
            return
        if self._is_removed and topology.member(self._announcement.peer) is not None:
            self._added()
            self._is_removed = False
        alive = frozenset(self._membership.alive())
        before = self._view
        if before is not None and (before.epoch, before.alive) == (topology.epoch, alive):
            return
        if before is None or before.epoch != topology.epoch:
            self._keep(topology)
            _log.info(events.TOPOLOGY, epoch=topology.epoch, members=len(topology.members))
        with self._views:
            self._view, self._heard = View(topology, alive, is_kept=self._unkept is None), None
            self._publish(self._view)

    def _not_added_because(self, topology: Topology) -> str:
        """Return why this peer waits for an admin request; empty if it does not."""
        me = self._announcement.peer
        if not self._waits_to_be_added or not topology.formed or topology.member(me) is not None:
            return ""
        if is_removed(me, self._view, topology):  # it stops
            return ""
        cause = "was removed from it" if self._is_removed else "has join = 'manual'"
        return (
            f"the peer is not a member of the cluster: it {cause}, and waits for: "
            f"dstash cluster add {me}"
        )

    def _keep(self, topology: Topology) -> bool:
        """Store a topology, in case the membership loses it; returns whether it is stored.

        If that fails (the disk is full), the peer uses the topology anyway and stores it later,
        because otherwise it would block every topology change. This does not hold for its first
        topology as a member: without it, the store would not show that the peer was a member.

        Raises:
            DStashError: it cannot be stored, and the store has none that lists this peer.
        """
        try:
            self._store.mark(KEPT, topology.encode())
            self._unkept = None
            self._note(_TOPOLOGY, "")
            return True
        except DStashError as error:
            kept = last_known(self._store)
            if kept is None or kept.member(self._announcement.peer) is None:
                raise
            self._unkept = topology
            self._note(
                _TOPOLOGY,
                f"the topology of epoch {topology.epoch} cannot be stored ({error}): this peer "
                "uses it, and retries to store it",
            )
            return False

    def _keep_again(self) -> None:
        """Try again to store the topology in use, and publish that it is stored."""
        if self._unkept is None or not self._keep(self._unkept):
            return
        with self._views:
            if self._view is not None:
                self._view = replace(self._view, is_kept=True)
                if self._heard is None:
                    self._publish(self._view)


def may_wait(error: MembershipUnreachable, store: Store) -> bool:
    """Whether a peer starts although the membership does not answer, or refuses its request.

    A peer of a formed cluster always does: its data is needed, and its access may be restored
    while it runs. A new peer is of no use before it has joined, so a refusal ends it.
    """
    return may_pass(error) or was_in_cluster(store)


def _log_request(request: OperatorRequest) -> None:
    if isinstance(request, DropRequest):
        _log.info("drop", index=request.index, prefix=request.prefix.hex())
    elif isinstance(request, IndexSettingsRequest):
        _log.info("settings of an index", index=request.index, settings=request.settings)
    else:
        _log.info("admin request", action=request.action, peers=request.peers, dry=request.dry)
