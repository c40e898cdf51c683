"""RabbitMQ: one link to publish, one to consume; the only module that knows pika (TRAPS 16, 22–25)."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pika
from pika import exceptions
from pika.adapters.select_connection import IOLoop

from common.broker_address import Address, tls_context
from common.errors import StsyncError, Unavailable
from common.link import Link, OnState, Step
from common.linkstate import LinkState, Loss, explain_close
from common.settings import BrokerSettings
from common.topology import Topology
from common.window import ConfirmWindow

__all__ = ["ConsumeLink", "Delivery", "LinkState", "PublishLink", "check_access"]

_CONTENT_TYPE = "application/octet-stream"
_WATCH_S = 1.0
_ACK_S = 0.1
_CLOSED = re.compile(r"\((\d{3})\) (.*)")  # how pika words a close that it could only tell as probable


@dataclass(frozen=True)
class Delivery:
    """A message as it came; `generation` is the channel's, on which alone `tag` means something."""

    body: bytes
    tag: int
    user_id: str | None
    redelivered: bool
    generation: int


@dataclass(frozen=True)
class _Message:
    exchange: str
    routing_key: str
    body: bytes
    token: object | None
    expiration_ms: int | None
    persistent: bool


class PublishLink(Link):
    """Publishes with pipelined confirms; with `lock`, only while it holds the cluster's relay lock.

    It never keeps messages for later: while it is not ready, or the window is full, `publish` says False.
    When it is lost (which a refused or overdue confirm also causes) it forgets everything unconfirmed and
    calls `on_reset(generation)`, which runs to its end before the link takes anything again: what the owner
    rewinds there is published again in order. `on_confirmed(token)` comes once for each confirmed message
    with a token, in the order of publishing; `on_room()` when there is room again. All callbacks come from
    the link's thread.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        topology: Topology,
        *,
        client_name: str,
        lock: bool = False,
        on_state: OnState | None = None,
        on_confirmed: Callable[[object], None] | None = None,
        on_reset: Callable[[int], None] | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(settings, topology, wire=_WIRE, client_name=client_name, lock=lock, on_state=on_state)
        self._on_confirmed = on_confirmed
        self._on_reset = on_reset
        self._on_room = on_room
        self._outgoing: deque[_Message] = deque()
        self._accepting = False
        self._admitted = 0
        self._posted = False
        self._window = ConfirmWindow()

    def room(self) -> int:
        """How many more messages the link takes now; 0 while it is not ready. Any thread may ask."""
        with self._guard:
            return max(0, self._settings.window - self._admitted) if self._accepting else 0

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        token: object | None = None,
        expiration_ms: int | None = None,
        persistent: bool = True,
    ) -> bool:
        """Hand a message to the link's thread; False, and nothing done, without room. Any thread may call."""
        message = _Message(exchange, routing_key, body, token, expiration_ms, persistent)
        with self._guard:
            if not self._accepting or self._admitted >= self._settings.window:
                return False
            self._admitted += 1
            self._outgoing.append(message)
            posted, self._posted = self._posted, True
        if not posted:
            self._post(self._drain)
        return True

    def _use(self, channel: Any) -> Iterator[Step]:
        self._window = ConfirmWindow()
        self._loop.call_later(_WATCH_S, self._watched(partial(self._check_overdue, channel)))
        on_confirm = self._watched(partial(self._on_confirm, channel))
        yield "confirm mode", partial(channel.confirm_delivery, on_confirm)

    def _came(self) -> None:
        with self._guard:
            self._accepting = True
        if self._on_room is not None:
            self._on_room()

    def _held(self) -> None:
        with self._guard:
            self._accepting = False

    def _went(self) -> None:
        with self._guard:
            self._accepting = False
            self._outgoing.clear()
            self._admitted = 0
        self._window = ConfirmWindow()
        if self._on_reset is not None:
            self._on_reset(self._generation)

    def _drain(self) -> None:
        with self._guard:
            batch = list(self._outgoing)
            self._outgoing.clear()
            self._posted = False
        now = time.monotonic()
        for one in batch:
            properties = _properties(one.persistent, one.expiration_ms, self._address.user)
            self._window.sent(one.token, now=now)
            self._channel.basic_publish(one.exchange, one.routing_key, one.body, properties)

    def _on_confirm(self, channel: Any, frame: Any) -> None:
        if channel is not self._channel:
            return
        if frame.method.NAME == "Basic.Nack":
            text = f"the broker at {self._address.place} could not take a message (nack); it is sent again"
            self._lose(Loss("down", text))
            return
        released = self._window.confirm(frame.method.delivery_tag, multiple=frame.method.multiple)
        if not released:
            return
        with self._guard:
            self._admitted -= len(released)
        for token in released:
            if token is not None and self._on_confirmed is not None:
                self._on_confirmed(token)
        if self._on_room is not None:
            self._on_room()

    def _check_overdue(self, channel: Any) -> None:
        """Notice a broker that lives but confirms nothing, such as a quorum without majority (TRAPS 22)."""
        if channel is not self._channel:
            return
        limit_s = self._settings.blocked_timeout_s
        if not self._blocked and self._window.oldest_age_s(now=time.monotonic()) > limit_s:
            text = f"the broker at {self._address.place} has not confirmed a message for {limit_s:g} s"
            self._lose(Loss("down", f"{text}; see the health of its queues (rabbitmq-diagnostics)"))
            return
        self._loop.call_later(_WATCH_S, self._watched(partial(self._check_overdue, channel)))


class ConsumeLink(Link):
    """Consumes one queue; `on_delivery` is called from its thread and should only enqueue the delivery.

    After a loss, or a pause, what was not acknowledged comes again in its order, with a new generation.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        topology: Topology,
        *,
        queue: str,
        client_name: str,
        on_delivery: Callable[[Delivery], None],
        on_state: OnState | None = None,
    ) -> None:
        super().__init__(settings, topology, wire=_WIRE, client_name=client_name, on_state=on_state)
        self._queue = queue
        self._on_delivery = on_delivery
        self._paused = False
        self._renewed_at = time.monotonic()
        self._done: Delivery | None = None
        self._acked = (0, 0)
        self._ack_due = False

    def done(self, delivery: Delivery) -> None:
        """Acknowledge this delivery and all before it, together with what follows within a moment: for a quorum queue each
        acknowledgement is work. At once where half of what the broker gives ahead would wait for it."""
        with self._guard:
            generation, tag = self._acked
            since = delivery.tag - (tag if generation == delivery.generation else 0)
            self._done = delivery
            due, self._ack_due = self._ack_due, True
        if 2 * since >= self._settings.prefetch:
            self._post(self._ack_done)
        elif not due:
            self._post(lambda: self._loop.call_later(_ACK_S, self._watched(self._ack_done)))

    def stop(self) -> None:
        """See Link."""
        self._post(self._ack_done)
        super().stop()

    def pause(self) -> None:
        """Take no deliveries until `resume`; what is not acknowledged goes back to the queue (TRAPS 15).

        Any thread may call.
        """
        self._post(self._pause)

    def resume(self) -> None:
        """Consume again, on a new channel. Any thread may call."""
        self._post(self._resume)

    def renew(self) -> None:
        """Begin anew on a new channel: queues and bindings are declared once more, what is not acknowledged comes again."""
        self._renewed_at = time.monotonic()
        self.pause()
        self.resume()

    def renew_after(self, seconds: float) -> None:
        """Renew the link if that has not been done for so long: for an owner who hears nothing where it should.

        A binding that somebody removed is noticed by nobody (AMQP has no word for it), and only declaring it brings it back.
        """
        if self.state.name == "ready" and time.monotonic() - max(self._renewed_at, self._ready_at) > seconds:
            self.renew()

    def _use(self, channel: Any) -> Iterator[Step]:
        channel.basic_cancel = _no_cancel  # closing would cancel first, which reorders a queue (TRAPS 14)
        channel.add_on_cancel_callback(self._watched(partial(self._on_cancelled, channel)))
        step = f"queue {self._queue!r}"
        deliver = self._watched(partial(self._on_message, self._generation))
        yield step, partial(channel.basic_qos, prefetch_count=self._settings.prefetch)
        yield f"consumer of {step}", partial(channel.basic_consume, self._queue, deliver)

    def _wanted(self) -> bool:
        return not self._paused

    def _on_message(self, generation: int, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if generation == self._generation and self._channel is not None:
            self._on_delivery(Delivery(body, method.delivery_tag, properties.user_id, method.redelivered, generation))

    def _on_cancelled(self, channel: Any, _frame: Any) -> None:
        """The queue was deleted, or the broker gave up on this consumer (TRAPS 21)."""
        if channel is self._channel:
            text = f"the broker at {self._address.place} ended the consumer of queue {self._queue!r}"
            self._lose(Loss("down", f"{text}; was the queue deleted?"))

    def _ack_done(self) -> None:
        with self._guard:
            delivery, self._done, self._ack_due = self._done, None, False
            if delivery is None:
                return
            self._acked = (delivery.generation, delivery.tag)
        if delivery.generation == self._generation and self._channel is not None:
            self._channel.basic_ack(delivery.tag, multiple=True)

    def _pause(self) -> None:
        self._ack_done()
        self._paused = True
        channel = self._channel
        if channel is not None:  # otherwise not connected yet, and then no channel will be opened
            self._forget_channel()
            channel.close()
            self._tell(LinkState("paused"))

    def _resume(self) -> None:
        self._paused = False
        connection = self._connection
        if self._channel is None and connection is not None and connection.is_open:
            self._open_channel()


def check_access(settings: BrokerSettings, topology: Topology) -> None:
    """Log in once and check, or declare, the topology.

    Raises BrokerRefused if the broker says no, Unavailable if no address of broker.urls can be reached.
    """
    link = Link(settings, topology, wire=_WIRE, client_name="stsync-check")
    link.start()
    try:
        state = link.wait_settled(2 * settings.connect_timeout_s * len(settings.urls) + _WATCH_S)
        fault: StsyncError | None = link.fault
    finally:
        link.stop()
    if fault is not None:
        raise fault
    if state.name != "ready":
        raise Unavailable(state.reason or "the broker did not answer in time; see broker.urls and broker.connect_timeout_s")


class _Pika:
    """The links' Wire, by pika; its exceptions end here."""

    def loop(self) -> Any:
        return IOLoop()

    def connect(self, address: Address, settings: BrokerSettings, name: str, loop: Any, calls: dict[str, Any]) -> Any:
        parameters = _parameters(address, settings, name)
        named = {f"{event}_callback": call for event, call in calls.items()}
        return pika.SelectConnection(parameters, custom_ioloop=loop, **named)

    def explain(self, error: Any, address: Address, step: str | None) -> Loss:
        at = f"the broker at {address.place}"
        if isinstance(error, exceptions.ConnectionBlockedTimeout):
            return Loss("down", f"{at} lacked memory or disk for longer than broker.blocked_timeout_s")
        if isinstance(error, exceptions.AuthenticationError):
            kind = "PLAIN (by password)" if address.password is not None else "EXTERNAL (by certificate)"
            return Loss("refused", f"{at} does not offer to log in by {kind}; see its auth_mechanisms", fatal=True)
        closed = _closed(error)
        if closed is not None:
            return explain_close(*closed, broker=address.place, user=address.login, step=step)
        if isinstance(error, exceptions.ConnectionOpenAborted):
            return Loss("down", f"{at} did not log us in within twice broker.connect_timeout_s")
        return Loss("down", f"there is no connection to {at}: {_reason(error)}")


_WIRE = _Pika()


def _parameters(address: Address, settings: BrokerSettings, name: str) -> Any:
    tls = None
    if address.tls:
        server_name = (settings.tls.server_name if settings.tls else None) or address.host
        tls = pika.SSLOptions(tls_context(settings.tls), server_name)
    credentials: Any = pika.credentials.ExternalCredentials()
    if address.password is not None:
        credentials = pika.PlainCredentials(address.user or "", address.password)
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=credentials,
        heartbeat=settings.heartbeat_s,
        blocked_connection_timeout=settings.blocked_timeout_s,
        socket_timeout=settings.connect_timeout_s,
        stack_timeout=2 * settings.connect_timeout_s,
        connection_attempts=1,
        retry_delay=0,
        ssl_options=tls,
        client_properties={"connection_name": name, "product": "stsync"},
    )


@lru_cache(maxsize=64)
def _properties(persistent: bool, expiration_ms: int | None, user_id: str | None) -> Any:
    """The broker checks user_id against the login, and so proves the publisher to the reader (TRAPS 19)."""
    return pika.BasicProperties(
        content_type=_CONTENT_TYPE,
        delivery_mode=2 if persistent else 1,
        expiration=None if expiration_ms is None else str(expiration_ms),
        user_id=user_id,
        app_id="stsync",
    )


def _no_cancel(*_arguments: Any, **_named: Any) -> None:
    """Stand in for basic_cancel on a channel whose consumer ends with it."""


def _closed(error: Any) -> tuple[int, str] | None:
    """The broker's code and words, if it was the broker who closed."""
    if isinstance(error, (exceptions.ConnectionClosedByBroker, exceptions.ChannelClosedByBroker)):
        return error.reply_code, error.reply_text
    if isinstance(error, (exceptions.ProbableAuthenticationError, exceptions.ProbableAccessDeniedError)):
        found = _CLOSED.search(str(error.args[0]))
        return (int(found[1]), found[2].strip("'\"")) if found else None
    return None


def _reason(error: Any) -> str:
    """The innermost error's words: pika wraps what the system said several times."""
    for _ in range(8):
        inner = getattr(error, "exceptions", None) or (getattr(error, "exception", None), *error.args[:1])
        causes = [one for one in inner if isinstance(one, BaseException)]
        if not causes:
            break
        error = causes[-1]
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return "it sent no heartbeat"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
