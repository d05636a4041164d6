"""The server of a peer: sockets, threads and clocks around the core.

One thread owns the socket and the core; it answers reads. Another thread commits, so that a sync
delays no read; commits that are small and not synced need none. All other threads reach the core
through ``post``.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import structlog

from dstash import threads
from dstash.cluster.topology.topology import Member, Topology, TransportSecurity
from dstash.cluster.topology.transitions import Proposal
from dstash.cluster.topology.view import View
from dstash.cpu_scheduling import LONG, use_time_slice
from dstash.errors import DStashError, NotReady, StoreFailed
from dstash.peer.admission.admin_requests import OperatorRequest, PendingAdminRequest
from dstash.peer.admission.authority import Authority
from dstash.peer.admission.inbox import Inbox
from dstash.peer.admission.requests import Reply
from dstash.peer.core import AnyCommit, PeerCore
from dstash.peer.supervision.slow_disk import SlowDisk
from dstash.waker import Waker
from dstash.wire.connections.connections import Connections
from dstash.wire.envelope import Envelope, encode
from dstash.wire.links import Event, Links
from dstash.wire.messages import Error, Hello
from dstash.wire.router import Received, Router
from dstash.wire.shapes import Message
from dstash.wire.sockets import Context, DescriptorPoller

_log = structlog.get_logger("dstash.peer")

T = TypeVar("T")

#: The most messages handled in one iteration of the loop, before commits and posts.
_MAX_BURST = 128

#: Without syncs, commits of up to this many bytes are made between two messages; once one has taken
#: longer than the limit, they are made on the committing thread for a while (seconds).
_QUICK_COMMIT_BYTES = 16 * 1024
_QUICK_COMMIT_S = 0.005
_QUICK_PAUSE_S = 1.0
#: A poll that finds a message within this time (seconds) did not wait: others may wait behind it.
_NO_WAIT_S = 0.00005
#: How often (seconds) the heartbeat is written, at most.
_BEAT_INTERVAL_S = 0.1
#: How often (seconds) the socket is read while messages wait in the inbox.
_READ_INTERVAL_S = 0.001
#: The most messages taken off the socket at once: a flood must not starve the loop.
_MAX_READ = 500
#: How long (seconds) background tasks may delay requests in one iteration, but for the last step.
_MAINTENANCE_S = 0.0003
#: The most messages that an overloaded peer rejects as busy for each one that it serves.
_MAX_REJECTED = 50


def wall() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class TopologyAgent(Protocol):
    """Keeps the topology current, on a thread of its own; see ``membership_agent.py``."""

    def refresh(self) -> None:
        """Read the membership soon."""

    def hear(self, topology: Topology) -> None:
        """Use the topology of another member, unless the membership answers soon."""

    def propose(self, proposals: Iterable[Proposal]) -> None:
        """Apply topology steps soon."""

    def administer(self, request: OperatorRequest, answer: Callable[[Message], None]) -> None:
        """Carry out an admin request soon."""


class _NoAgentYet:
    def refresh(self) -> None:
        """Do nothing."""

    def hear(self, topology: Topology) -> None:
        """Do nothing."""

    def propose(self, proposals: Iterable[Proposal]) -> None:
        """Do nothing."""

    def administer(self, request: OperatorRequest, answer: Callable[[Message], None]) -> None:
        answer(Error.of(NotReady("the peer is starting")))


class PeerServer:
    """Runs a core on a socket until it is stopped.

    Args:
        router: the bound socket; closed at the end.
        context: for connections to other peers.
        drain: how long (seconds) a stop may take to answer accepted requests.
        security: how it connects to other peers.
    """

    def __init__(
        self,
        core: PeerCore,
        router: Router,
        context: Context,
        *,
        drain: float,
        security: TransportSecurity = TransportSecurity.OPEN,
    ) -> None:
        self.meters = core.meters
        self._core = core
        self._router = router
        self._agent: TopologyAgent = _NoAgentYet()
        self._drain = drain
        self._security = security
        self._waker = Waker()
        self._poller = DescriptorPoller()
        self._links = Links(context, self._poller, self._greeting)
        self._inbox: Inbox[Received] = Inbox(core.settings.max_waiting_bytes // 2)
        self._posts: deque[Callable[[], list[Reply]]] = deque()
        self._commits: queue.SimpleQueue[AnyCommit | None] = queue.SimpleQueue()
        self._committing = False
        self._has_answered = False
        #: Whether messages wait, so that those of all senders are read before the next is handled.
        self._is_busy = False
        self._waited_for = True
        self._stop = threading.Event()
        self._deadline = 0.0
        self._maintaining_since = 0.0
        #: When messages were taken off the socket last.
        self._read_at = 0.0
        core.scheduler.has_time = self._has_time
        core.admission.unread = router
        core.health.refusals.address_of = router.address_of
        #: Shows other processes that the peer lives. Called at each iteration of the loop, but not
        #: more than ten times a second.
        self.beat: Callable[[], None] = lambda: None
        self._beaten_at = 0.0
        self._slow_disk = SlowDisk()
        self._last_iteration = time.monotonic()
        self._error: DStashError | None = None
        self._commit_began: float | None = None
        #: From when on small commits may be made on the socket's thread.
        self._quick_from = 0.0
        self._commits_end = False
        self._committer = threads.thread(
            self._commit_all, name="committer", may_end=lambda: self._commits_end
        )

    def attach(self, agent: TopologyAgent) -> None:
        """Set the agent that keeps the topology current; before ``run``."""
        self._agent = agent

    # -- for other threads

    def post(self, action: Callable[[], list[Reply]]) -> None:
        """Run ``action`` on the socket's thread, which sends the replies that it returns."""

        def disturb() -> list[Reply]:
            self._core.disturb()
            return action()

        self._post(disturb)

    def _post(self, action: Callable[[], list[Reply]]) -> None:
        self._posts.append(action)
        self._waker.wake()

    def ask(self, question: Callable[[], T], timeout: float) -> T | None:
        """Return the result of ``question`` on the socket's thread; None on timeout (seconds)."""
        answers: queue.SimpleQueue[T | None] = queue.SimpleQueue()

        def answer() -> list[Reply]:
            try:
                answers.put(question())
            except Exception:  # a faulty question must not end the peer
                _log.exception("a question about this peer failed")
                answers.put(None)
            return []

        self.post(answer)
        try:
            return answers.get(timeout=timeout)
        except queue.Empty:
            return None

    def install(self, view: View) -> None:
        """Hand a view to the core."""
        self.post(lambda: self._take_view(view))

    def wait_for(self, reason: str) -> None:
        """Set the reason why this peer has no view yet."""

        def take() -> list[Reply]:
            self._core.health.waits_for = reason
            return []

        self.post(take)

    def authorise(self, authority: Authority) -> None:
        """Hand a list of authorised keys to the core."""

        def take() -> list[Reply]:
            before = self._core.admission.authority
            self._core.admission.authorise(authority)
            self._router.shut_out(before.keys - authority.keys if before else ())
            return []

        self.post(take)

    def stop(self) -> None:
        """Refuse new requests, answer accepted requests, and return from ``run``. Signal-safe."""
        self._stop.set()
        self._waker.wake()

    def fail(self, error: DStashError) -> None:
        """Stop like ``stop``, and raise ``error`` from ``run``."""
        self._error = self._error or error
        self.stop()

    def problem(self, source: str, text: str) -> None:
        """Show a problem in status and readiness until its source clears it with an empty text."""

        def note() -> list[Reply]:
            self._core.health.problems.pop(source, None)
            if text:
                self._core.health.problems[source] = text
            return []

        self.post(note)

    def seconds_since_iteration(self) -> float:
        """Return the age of the loop's present iteration: much more than 0.5 means it hangs."""
        return time.monotonic() - self._last_iteration

    def seconds_committing(self) -> float:
        """Return for how long the present commit has been running; 0 when none does."""
        began = self._commit_began
        return 0.0 if began is None else time.perf_counter() - began

    @property
    def connections(self) -> Connections | None:
        """The connections of clients and peers; any thread may read its numbers."""
        return self._router.connections

    # -- the socket's thread

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            StoreFailed: the disk failed; no write was acked before its sync.
            DStashError: the error that was given to ``fail``.
        """
        self._poller.watch(self._router.socket, self._waker.handle)
        self._committer.start()
        try:
            while not self._finished():
                self._iterate()
        finally:
            self._commits_end = True
            self._commits.put(None)
            self._committer.join(timeout=10)
            self._links.close()
            self._router.close_after(0.5)
            self._waker.close()
        if self._core.failure is not None:
            raise StoreFailed(str(self._core.failure))
        if self._error is not None:
            raise self._error

    def _iterate(self) -> None:
        now = self._last_iteration = time.monotonic()
        if now - self._beaten_at > _BEAT_INTERVAL_S:
            self._beaten_at = now
            self.beat()
        has_message = self._await_event()
        if self._posts:
            self._run_posts()
        if has_message or self._inbox:
            is_ready_at_once = time.monotonic() - now < _NO_WAIT_S
            # A commit that runs may delay this thread, so that messages wait.
            self._is_busy = self._is_busy or self._committing or is_ready_at_once
            self._receive_burst()
        self._hand_over()  # before the background tasks: a client waits for it
        self._maintain()
        if self._hand_over():
            self._maintain()  # what was committed may be what a task or a register waits for

    def _await_event(self) -> bool:
        """Wait until there is something to do; return whether the router may have a message."""
        router, links = self._router, self._links
        if links.may_have_news:
            self._take_events(links.unnoticed())
        # A descriptor does not show what arrived before the socket was used last.
        has_message = router.has_message
        for source in self._poller.wait(0 if has_message else self._core.idle_time(wall())):
            if source == self._waker.handle:
                self._waker.clear()
            elif source is router.socket:
                has_message = True
            else:
                self._take_events(links.events(source))
        return has_message

    def _take_view(self, view: View) -> list[Reply]:
        replies = self._core.install(view, wall())
        waited_for = view.is_read(self._core.settings.peer)
        if waited_for != self._waited_for:
            # No client waits for a peer that only streams: other processes of the machine go first.
            self._waited_for = waited_for
            use_time_slice(None if waited_for else LONG)
        return replies

    def _take_events(self, events: Iterable[Event]) -> None:
        for peer, parts in events:
            if parts is None:
                self._core.disturb()
                self._core.outgoing.lost(peer)
                self._agent.refresh()  # its process may have ended
            else:
                self._core.answered(peer, parts, wall())

    def _has_time(self) -> bool:
        return time.perf_counter() - self._maintaining_since < _MAINTENANCE_S

    def _maintain(self) -> None:
        now = wall()
        if self._core.is_idle_at(now):
            return
        if self._has_answered and self._core.scheduler.has_ready:
            os.sched_yield()  # to ZeroMQ's thread, which has answers to send
        self._has_answered = False
        self._tick(now)
        news = self._core.topology_news
        if news.wants_refresh:
            news.wants_refresh = False
            self._agent.refresh()
        if news.heard is not None:
            self._agent.hear(news.heard)
        for pending in self._core.admin_requests.take():
            self._agent.administer(pending.request, partial(self._post_answer, pending))

    def _tick(self, now: int) -> None:
        self._slow_disk.watch(self.seconds_committing())
        self._maintaining_since = time.perf_counter()
        replies, outgoing = self._core.tick(now)
        self._send(replies)
        members = self._core.view.members if self._core.view else {}
        for message in outgoing:
            address = self._endpoint(members.get(message.peer))
            if self._links.moved(message.peer, address):
                self._core.outgoing.lost(message.peer)
                self._core.disturb()
            if not self._links.send(message.peer, address, message.frames):
                self._core.outgoing.unsent(message)
                self._core.disturb()
        proposals = self._core.take_proposals()
        if proposals:
            self._agent.propose(proposals)

    def _endpoint(self, member: Member | None) -> str | None:
        authority = self._core.admission.authority
        if member is None:
            return None
        if authority is not None and member.key and not authority.is_peer(member.key):
            return None  # the membership lists it, but its key is not authorised
        return member.endpoint(self._security)

    def _post_answer(self, pending: PendingAdminRequest, message: Message) -> None:
        self.post(lambda: pending.answer(message, wall()))

    def _greeting(self) -> list[bytes]:
        settings = self._core.settings
        return encode(Envelope(0, 0, 0, Hello(settings.cluster, sender=settings.peer)))

    def _finished(self) -> bool:
        if self._core.failure is not None:
            return True
        if not self._stop.is_set():
            return False
        if not self._core.health.stopping:
            self._core.health.stopping = True
            self._core.disturb()
            self._deadline = time.monotonic() + self._drain
            _log.info("stopping: answering accepted requests")
            return False
        return not self._core.has_work or time.monotonic() > self._deadline

    def _run_posts(self) -> None:
        while self._posts:
            self._send(self._posts.popleft()())

    def _receive_burst(self) -> None:
        self._core.be_busy(self._is_busy)
        for number in range(_MAX_BURST):
            began = time.perf_counter()
            received = self._next_message(began)
            if received is None:
                self._is_busy = number > 1
                return
            replies = self._answer(received)
            self.meters.handling.observe(time.perf_counter() - began)
            self._send(replies)
            if not self._is_busy:
                return  # the next poll finds out whether there are more
        self._waker.wake()  # more may wait: do not sleep on it

    def _next_message(self, now: float) -> Received | None:
        """Return the message to handle next; the only message passes by the inbox."""
        inbox, router, tracer = self._inbox, self._router, self._core.tracer
        if not inbox:
            if not self._is_busy:  # to look for a second message takes as long as to answer one
                if tracer is not None:
                    tracer.waited = 0.0
                return router.receive()
            first = router.receive() if router.has_message else None
            if first is None or not router.has_message:
                if tracer is not None:
                    tracer.waited = 0.0
                return first
            self._put(first, now)
            self._read_at = 0.0
        if now - self._read_at > _READ_INTERVAL_S:
            self._fill_inbox(now)
            self._read_at = time.perf_counter()
        received = inbox.take(now)
        if tracer is not None:
            tracer.waited = now - inbox.came
        self._reject(inbox.surplus())
        return received

    def _put(self, received: Received, now: float) -> None:
        self._inbox.put(received.sender, received, sum(map(len, received.parts)), now)

    def _fill_inbox(self, now: float) -> None:
        for _ in range(_MAX_READ):
            if not (self._inbox.has_room and self._router.has_message):
                return
            if (received := self._router.receive()) is None:
                return
            self._put(received, now)

    def _reject(self, surplus: list[Received]) -> None:
        # To answer all of them would leave no time for work; the other clients ask another peer.
        for sender, parts, _ in surplus[:_MAX_REJECTED]:
            self._send(self._core.rejections.busy(sender, parts, wall(), "the peer is overloaded"))
        self._core.health.counts["dropped"] += len(surplus[_MAX_REJECTED:])

    def _answer(self, received: Received) -> list[Reply]:
        sender, parts, user = received
        if self._router.is_slow(sender):
            return self._core.rejections.busy(
                sender, parts, wall(), "the client does not read its answers"
            )
        try:
            return self._core.receive(sender, parts, wall(), user)
        except Exception:  # a defect: a message that triggers it must not end the peer
            _log.exception("a message could not be handled")
            self._core.health.counts["unhandled"] += 1
            return []

    def _send(self, replies: list[Reply]) -> None:
        self._has_answered = self._has_answered or bool(replies)
        for reply in replies:
            if not self._router.send(reply.to, reply.frames):
                self._core.health.counts["undelivered"] += 1

    def _hand_over(self) -> bool:
        """Commit the writes that wait here, or on the committing thread; return whether here."""
        has_committed = False
        while not self._committing:
            commit = self._core.next_commit(wall())
            if commit is None:
                break
            self._committing = True
            if not self._is_quick(commit):
                self._commits.put(commit)
                break
            has_committed = True
            took, sync = self._run(commit)
            if took > _QUICK_COMMIT_S:
                self._quick_from = time.monotonic() + _QUICK_PAUSE_S
            self._send(self._conclude(commit, took, sync))
        return has_committed

    def _is_quick(self, commit: AnyCommit) -> bool:
        """Whether a commit delays other messages less than a change of threads would.

        While messages wait, their writes are grouped, which takes a commit that runs meanwhile.
        """
        return (
            not self._is_busy
            and self._core.store.commits_at_once
            and commit.is_light(_QUICK_COMMIT_BYTES)
            and time.monotonic() >= self._quick_from
        )

    def _run(self, commit: AnyCommit) -> tuple[float, float]:
        """Make a commit; return how long (seconds) it took, and its sync of that."""
        began = self._commit_began = time.perf_counter()
        try:
            commit.run(self._core.store)
        except Exception as error:  # a defect: the writes are not acked, and the peer must stop
            _log.exception("commit failed")
            commit.fatal = DStashError(f"commit failed: {error!r}")
        self._commit_began = None
        took = time.perf_counter() - began
        sync = min(took, self._core.store.synced_in)
        self.meters.committed(commit.stats(took, sync))
        if self._core.tracer is not None:
            commit.note(took, sync)
        return took, sync

    def _conclude(self, commit: AnyCommit, took: float, sync: float) -> list[Reply]:
        self._committing = False
        self._slow_disk.committed(took, sync)
        return self._core.committed(commit, wall())

    # -- the committing thread

    def _commit_all(self) -> None:
        use_time_slice(LONG)  # no look-up waits for this thread, and a sync takes longer
        while (commit := self._commits.get()) is not None:
            took, sync = self._run(commit)
            self._post(partial(self._committed, commit, took, sync))

    def _committed(self, commit: AnyCommit, took: float, sync: float) -> list[Reply]:
        replies = self._conclude(commit, took, sync)
        self._hand_over()
        return replies
