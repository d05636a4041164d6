"""A virtual client: the real calls, session and channel, over the virtual network."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from dstash.client.calls import Calls
from dstash.client.operations.base import Call
from dstash.client.session import Session
from dstash.client.transport.channel import _SEARCH_PAUSE_MS, _SEARCH_TIMEOUT_MS, Channel, Find
from dstash.config import ClientSettings
from dstash.errors import DStashError
from dstash.types import Level
from dstash.wire.values import TypeRegistry
from tests.simulation.clock import WallClock
from tests.simulation.events import MS
from tests.simulation.links import VirtualLinks

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Called with the operation when it is done.
Done = Callable[[Call], None]

_TYPES: Final = TypeRegistry()


class VirtualChannel(Channel):
    """The real channel, except that it is given the ready sockets instead of polling."""

    def __init__(self, client: VirtualClient, session: Session) -> None:
        self._client = client
        self._session = session
        self._connections = VirtualLinks(
            client.world.network, client, session.greeting, self._notice
        )
        self._links = self._connections
        self._running = []
        self._stores = {}
        self._next_find = 0
        self._find: Find | None = None
        self._done: Done | None = None
        self._alarm = 0

    def begin(self, operation: Call, done: Done, find: Find | None = None) -> None:
        """Drive a call; ``done`` is called at its end. ``find`` as in ``Channel.run``."""
        self._running, self._done, self._find = [operation], done, find
        operation.stores = self._stores
        self._alarm = 0
        try:
            self._send(self._session.probes(self._session.wall()), operation)
        except DStashError as error:
            operation.fail(error)
        self.pump()

    def _notice(self) -> None:
        if self._running:
            self._client.do(self.pump)

    def pump(self) -> None:
        """Do what an iteration of the real loop does after its poll."""
        if not self._running:
            return
        operation = self._running[0]
        try:
            self._iterate()
        except DStashError as error:  # the real loop would raise it to the caller
            operation.fail(error)
        if operation.done:
            self._end(operation)
        else:
            self._set_alarm(self._running[-1].wakeup() - self._session.wall())

    def _iterate(self) -> None:
        for handle in self._connections.ready():
            for peer, parts in self._links.events(handle):
                if parts is None:
                    self._lost(peer, self._links.reasons.get(peer, "connection lost"))
                else:
                    self._receive(peer, parts)
        # After a search the real loop waits for news of the call before it searches again.
        has_searched = self._end_search()
        now = self._session.wall()
        is_alone = self._find is not None and len(self._running) == 1 and not has_searched
        if is_alone and self._session.is_lost and now >= self._next_find:
            self._begin_search(now)
        current = self._running[-1]
        while not current.done and current.hungry:
            self._send(current.more(now), current)
        if not current.done and now >= current.wakeup():
            self._send(current.tick(now), current)
        self._end_search()

    def _begin_search(self, now: int) -> None:
        if self._find is not None:
            search = self._find(now + _SEARCH_TIMEOUT_MS)
            search.stores = self._stores
            self._running.append(search)
            self._send(self._session.probes(now), search)

    def _end_search(self) -> bool:
        """End a search that has finished or whose call has ended; return whether there was one."""
        if len(self._running) < 2 or not any(running.done for running in self._running):
            return False
        self._running.pop()
        self._next_find = self._session.wall() + _SEARCH_PAUSE_MS
        return True

    def _end(self, operation: Call) -> None:
        done, self._running, self._done = self._done, [], None
        if done is not None:
            done(operation)

    def _set_alarm(self, milliseconds: int) -> None:
        events = self._client.world.events
        when = events.now + max(1, milliseconds) * MS
        if not self._alarm or when < self._alarm or self._alarm <= events.now:
            self._alarm = when
            events.at(when, self._ring, when)

    def _ring(self, when: int) -> None:
        if when == self._alarm:
            self._alarm = 0
            self._client.do(self.pump)


class VirtualClient:
    """A thread of a client process; it makes one call at a time.

    Args:
        world: the world.
        name: of this thread; the values that it writes contain it.
        clock: of its machine.
        settings: of the client.
        session: of the client that it is a thread of; None for the first thread of a process.
        process: the id of its process.
    """

    def __init__(
        self,
        world: World,
        name: str,
        clock: WallClock,
        settings: ClientSettings,
        session: Session | None = None,
        process: int = 0,
    ) -> None:
        self.name = name
        self.settings = settings
        self.process = process or world.new_process()
        self.world = world
        self.clock = clock
        self.is_paused = False
        self.values_made = 0
        self._deferred: list[Callable[[], None]] = []
        world.running_process = self.process
        self.session = session or world.make_session(clock, settings.zone or "")
        self.calls = Calls(settings, self.session, _TYPES)
        self.channel = VirtualChannel(self, self.session)

    @property
    def answers(self) -> bool:
        """Whether the process runs."""
        return not self.is_paused

    @property
    def refuses(self) -> bool:
        """No process connects to a client."""
        return True

    def do(self, action: Callable[[], None]) -> None:
        """Call ``action`` when the process is not paused."""
        if self.is_paused:
            if action not in self._deferred:
                self._deferred.append(action)
            return
        self.world.running_process = self.process
        self.world.guard(self.name, action)

    def thread(self, name: str) -> VirtualClient:
        """Return another thread of this process."""
        return VirtualClient(
            self.world, name, self.clock, self.settings, self.session, self.process
        )

    def fork(self, name: str) -> VirtualClient:
        """Return a forked process: it has a copy of the memory, and connections of its own."""
        process = self.world.new_process()
        session = copy_session(self.session)
        return VirtualClient(self.world, name, self.clock, self.settings, session, process)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        self.is_paused = True

    def resume(self) -> None:
        """Resume the process."""
        self.is_paused = False
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            self.do(action)

    def run(self, operation: Call, done: Callable[[Any, DStashError | None], None]) -> None:
        """Make a call; find the cluster first if necessary, as the blocking client does."""

        def ended(operation: Call) -> None:
            try:
                result = operation.result()
            except DStashError as error:
                done(None, error)
            else:
                done(result, None)

        def discovered(discovery: Call) -> None:
            try:
                discovery.result()
            except DStashError as error:
                done(None, error)
            else:
                self.do(lambda: self.channel.begin(operation, ended, self.calls.discovery))

        if self.session.is_lost:
            discovery = self.calls.discovery(operation.deadline)
            self.channel.begin(discovery, discovered)
        else:
            self.channel.begin(operation, ended, self.calls.discovery)


def copy_session(session: Session) -> Session:
    """Return the session as a forked process has it."""
    apart = (session.wall, session.view, session.random_bytes, session.process)
    return deepcopy(session, {id(outside): outside for outside in apart})


def client_settings(seeds: list[str], timeout: float, zone: str | None) -> ClientSettings:
    """Return the settings of a virtual client."""
    return ClientSettings(
        peers=seeds,
        cluster="simulated",
        read=Level.QUORUM,
        write=Level.QUORUM,
        timeout=timeout,
        zone=zone,
    )
