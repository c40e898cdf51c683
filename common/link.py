"""A link to the broker that keeps coming back: connect, declare, be of use, lose it, try again.

Everything from `_attempt` on runs in the link's own I/O thread, and so do the owner's callbacks, which must
be quick and must not wait for the link. What is lost is dropped as a whole, connection, channel and all, and
built anew (TRAPS 24, 25).
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from common.backoff import delay_s
from common.broker_address import Address, addresses, tls_context
from common.errors import BrokerRefused, Fault, StsyncError
from common.linkstate import LinkState, Loss, StateName
from common.settings import BrokerSettings
from common.topology import Topology

_CLOSE_S = 3.0
_SETTLED: tuple[StateName, ...] = ("ready", "down", "locked", "refused", "stopped")
Step = tuple[str, Callable[..., Any]]
OnState = Callable[[LinkState], None]


class Wire(Protocol):
    """What a link needs of the AMQP library."""

    def loop(self) -> Any:
        """A new I/O loop."""

    def connect(self, address: Address, settings: BrokerSettings, name: str, loop: Any, calls: dict[str, Any]) -> Any:
        """Begin to connect; one of `calls` (on_open, on_open_error, on_close) tells how it went."""

    def explain(self, error: Any, address: Address, step: str | None) -> Loss:
        """Why a connection or channel was lost or never came to be."""


class Link:
    """One connection with one channel, owned by one thread; the base of the links of common.broker."""

    def __init__(
        self,
        settings: BrokerSettings,
        topology: Topology,
        *,
        wire: Wire,
        client_name: str,
        lock: bool = False,
        on_state: OnState | None = None,
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._wire = wire
        self._name = client_name
        self._wants_lock = lock
        self._on_state = on_state
        self._addresses = addresses(settings)
        if any(address.tls for address in self._addresses):
            tls_context(settings.tls)  # a file that cannot be used is told at once, not by a link that never comes up
        self._turn = self._tries = 0
        self._guard = threading.Condition()
        self._state = LinkState("connecting")
        self._fault: StsyncError | None = None
        self._generation = 0
        self._thread: threading.Thread | None = None
        self._loop: Any = None
        self._connection: Any = None
        self._channel: Any = None
        self._alive: set[Any] = set()
        self._steps: deque[Step] = deque()
        self._step: str | None = None
        self._skipped: set[str] = set()
        self._served = self._in_use = self._blocked = self._ending = False
        self._ready_at = 0.0

    @property
    def state(self) -> LinkState:
        """Where the link stands now; any thread may ask."""
        with self._guard:
            return self._state

    @property
    def fault(self) -> StsyncError | None:
        """Why the link gave up: BrokerRefused, or Fault if its thread died; its state is `refused`."""
        with self._guard:
            return self._fault

    @property
    def generation(self) -> int:
        """The number of the present channel; it grows with each."""
        with self._guard:
            return self._generation

    def start(self) -> None:
        """Start the link's thread; returns at once."""
        self._loop = self._wire.loop()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._post(self._attempt)
        self._thread.start()

    def stop(self) -> None:
        """Close the connection and end the thread; repeatable; never to be called from a callback."""
        if self._thread is None:
            return
        self._post(partial(self._end, LinkState("stopped"), None))
        self._thread.join(2 * _CLOSE_S + self._settings.connect_timeout_s)
        if self._thread.is_alive():
            raise Fault(f"the broker link {self._name} did not end; one of its callbacks hangs")

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the link is ready; False after `timeout_s`, or at once when it gave up (see `fault`)."""
        with self._guard:
            over: tuple[StateName, ...] = ("ready", "refused", "stopped")
            self._guard.wait_for(lambda: self._state.name in over, timeout_s)
            return self._state.name == "ready"

    def wait_settled(self, timeout_s: float) -> LinkState:
        """Wait until the first round over all addresses has ended, well or not."""
        with self._guard:
            self._guard.wait_for(lambda: self._state.name in _SETTLED, timeout_s)
            return self._state

    # What those derived from it say.

    def _use(self, channel: Any) -> Iterator[Step]:
        """The steps that make a channel with a good topology useful."""
        del channel
        return iter(())

    def _came(self) -> None:
        """The link is ready, or ready again after the broker had blocked it."""

    def _held(self) -> None:
        """The broker takes nothing now; what is on its way will still be confirmed."""

    def _went(self) -> None:
        """The channel that was in use is lost, and all that was on its way."""

    def _wanted(self) -> bool:
        """Whether a channel is wanted now."""
        return True

    # The thread.

    def _post(self, call: Callable[[], None]) -> None:
        """Have the link's thread make a call; calls keep their order."""
        if self._loop is not None:
            self._loop.add_callback_threadsafe(self._watched(call))

    def _watched(self, call: Callable[..., None]) -> Callable[..., None]:
        """The call, made so that an error in it ends the link.

        The AMQP library would only drop the connection, and the link would make the same error again and
        again.
        """

        def run(*arguments: Any) -> None:
            with _Watch(self._died):
                call(*arguments)

        return run

    def _died(self, error: BaseException) -> None:
        text = f"the broker link {self._name} ended by an unexpected {type(error).__name__}: {error}"
        self._end(LinkState("refused", text), Fault(text))

    def _run(self) -> None:
        try:
            self._loop.start()
        except BaseException as exc:
            over = self._ending
            self._close_loop(exc)
            if not over:  # pika trips over a connection that is closed while its login fails; nobody needs it any more
                raise
        else:
            self._close_loop(None)

    def _close_loop(self, error: BaseException | None) -> None:
        try:
            if not self._ending:
                self._died(error or RuntimeError("its I/O loop ended"))
                self._loop.start()  # once more, only to close the connection
        finally:
            self._loop.close()

    def _end(self, state: LinkState, fault: StsyncError | None) -> None:
        if self._ending:
            return
        self._ending = True
        self._loop.call_later(_CLOSE_S, self._loop.stop)
        self._tell(state, fault)
        self._drop()
        if not self._alive:
            self._loop.stop()

    def _tell(self, state: LinkState, fault: StsyncError | None = None) -> None:
        with self._guard:
            if state == self._state:
                return
            self._state, self._fault = state, fault or self._fault
            self._guard.notify_all()
        if self._on_state is not None:
            self._on_state(state)

    # Coming.

    def _attempt(self) -> None:
        if self._ending:
            return
        calls: dict[str, Callable[..., None]] = {"on_open": self._on_open}
        calls |= {"on_open_error": self._gone, "on_close": self._gone}
        watched = {name: self._watched(call) for name, call in calls.items()}
        self._blocked = False
        self._connection = self._wire.connect(self._address, self._settings, self._name, self._loop, watched)
        self._alive.add(self._connection)

    @property
    def _address(self) -> Address:
        return self._addresses[self._turn % len(self._addresses)]

    def _on_open(self, connection: Any) -> None:
        if connection is not self._connection:
            return
        connection.add_on_connection_blocked_callback(self._watched(partial(self._on_blocked, True)))
        connection.add_on_connection_unblocked_callback(self._watched(partial(self._on_blocked, False)))
        self._open_channel()

    def _open_channel(self) -> None:
        if not self._wanted():
            self._tell(LinkState("paused"))
            return
        with self._guard:
            self._generation += 1
        self._in_use = False
        self._channel = self._connection.channel(on_open_callback=self._watched(self._on_channel_open))

    def _on_channel_open(self, channel: Any) -> None:
        if channel is not self._channel:
            return
        channel.add_on_close_callback(self._watched(self._on_channel_close))
        self._steps = deque((*self._declarations(channel), *self._use(channel)))
        self._next_step(channel, None)

    def _declarations(self, channel: Any) -> Iterator[Step]:
        """Declare the topology, or only look whether it is there.

        Bindings cannot be looked for: AMQP has no word for that.
        """
        if self._wants_lock:
            name = self._topology.lock_queue
            yield f"lock queue {name!r}", partial(channel.queue_declare, name, exclusive=True)
        passive = not self._settings.declare
        for exchange in self._topology.exchanges:
            declare = partial(channel.exchange_declare, exchange.name, exchange.kind, passive=passive, durable=True)
            yield f"exchange {exchange.name!r}", declare
        for queue in self._topology.queues:
            step = f"queue {queue.name!r}"
            arguments = None if passive else queue.arguments
            if step not in self._skipped:
                declare = partial(channel.queue_declare, queue.name, durable=True, arguments=arguments)
                yield step, partial(declare, passive=passive)
        if not self._settings.declare:
            return
        away = self._topology.unbound
        if f"queue {away.queue!r}" not in self._skipped:
            unbind = partial(channel.queue_unbind, away.queue, away.exchange, routing_key=away.routing_key)
            yield f"removed binding of queue {away.queue!r} to exchange {away.exchange!r}", unbind
        for one in self._topology.bindings:
            if f"queue {one.queue!r}" not in self._skipped:
                bind = partial(channel.queue_bind, one.queue, one.exchange, routing_key=one.routing_key)
                yield f"binding of queue {one.queue!r} to exchange {one.exchange!r}", bind

    def _next_step(self, channel: Any, _reply: Any) -> None:
        if channel is not self._channel:
            return
        if self._steps:
            self._step, take = self._steps.popleft()
            take(callback=self._watched(partial(self._next_step, channel)))
            return
        self._step = None
        self._served = self._in_use = True
        self._ready_at = time.monotonic()
        self._skipped.clear()
        self._on_blocked(self._blocked, None, None)

    def _on_blocked(self, blocked: bool, _connection: Any, _frame: Any) -> None:
        """The broker takes nothing from this connection while it lacks memory or disk (TRAPS 16)."""
        self._blocked = blocked
        if not self._in_use:
            return
        if blocked:
            self._held()
            text = f"the broker at {self._address.place} lacks memory or disk and takes no messages"
            self._tell(LinkState("blocked", text))
        else:
            self._came()
            self._tell(LinkState("ready"))

    # Going.

    def _gone(self, connection: Any, error: Any) -> None:
        self._alive.discard(connection)
        if self._ending and not self._alive:
            self._loop.stop()
        if connection is self._connection and not self._ending:
            self._lose(self._wire.explain(error, self._address, self._step))

    def _on_channel_close(self, channel: Any, error: Any) -> None:
        if channel is self._channel and self._connection.is_open:
            self._lose(self._wire.explain(error, self._address, self._step))

    def _lose(self, loss: Loss) -> None:
        """Forget connection and channel, and come back after a pause, unless that is in vain."""
        if loss.away and self._step:
            self._skipped.add(self._step)
        fresh = self._ready_at and time.monotonic() - self._ready_at > self._settings.retry_max_s
        self._tries = 1 if fresh else self._tries + 1
        self._ready_at = 0.0
        self._drop()
        if loss.fatal or (loss.name == "refused" and not self._served):
            self._end(LinkState("refused", loss.reason), BrokerRefused(loss.reason))
            return
        self._turn += 1
        wait_s = self._wait_s()
        if wait_s or self._state.name != "connecting":
            self._tell(LinkState("down" if loss.name == "refused" else loss.name, loss.reason))
        self._loop.call_later(wait_s, self._watched(self._attempt))

    def _wait_s(self) -> float:
        """None before the next address of a round, more after each round in vain."""
        rounds, rest = divmod(self._tries, len(self._addresses))
        if rest:
            return 0.0
        low, high = self._settings.retry_min_s, self._settings.retry_max_s
        return delay_s(rounds - 1, minimum_s=low, maximum_s=high, random=random.random)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._forget_channel()
        if connection is not None and not (connection.is_closing or connection.is_closed):
            connection.close()

    def _forget_channel(self) -> None:
        in_use, self._in_use = self._in_use, False
        self._channel = self._step = None
        self._steps.clear()
        if in_use:
            self._went()


class _Watch:
    """Tells of any exception that leaves the block, and lets it go on."""

    def __init__(self, tell: Callable[[BaseException], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._tell(error)
