"""The primary's service: relay, sender and control, each in its own thread (README, thread table)."""

import queue
import time

import structlog

from common import nodestate
from common.broker import ConsumeLink, Delivery, LinkState, PublishLink
from common.capture_watch import CaptureWatch
from common.changes import Position
from common.crew import Crew
from common.errors import Fault, Unavailable
from common.link_log import LinkLog
from common.live_lists import LiveLists
from common.runtime import Runtime
from common.troubles import Troubles
from publisher import journal
from publisher.cadence import Cadence
from publisher.control import Control, gather
from publisher.heartbeat import Pulse
from publisher.outlet import Sent
from publisher.relay import Drained, Relay
from publisher.sender import Sender
from publisher.synchronization import Synchronization

_IDLE_S = 1.0
_TIDY_ROWS = 20_000


def run(runtime: Runtime) -> None:
    """Serve as primary until stop is set; raises what ended it otherwise."""
    PrimaryService(runtime).run()


class PrimaryService:
    """Puts the primary's parts together and keeps them running."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._database = runtime.database
        self._log = structlog.get_logger("primary")
        self._troubles = Troubles(runtime.database)
        self._link_log = LinkLog("primary", self._troubles)
        self._crew = Crew(runtime.stop, self._troubles)
        self._lists = LiveLists(runtime.database, runtime.settings)
        self._watch = CaptureWatch(runtime.database, runtime.settings)
        state = runtime.state
        self._sender = Sender(runtime.database, runtime.topology, state.published, state.position.sequence)
        self._relay = Relay(
            runtime.database, self._settings.relay, runtime.writer, lambda: self._lists.present, state.position
        )
        self._arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._publish = PublishLink(
            self._settings.broker,
            runtime.topology,
            client_name=f"{state.name}-publish",
            lock=True,
            on_confirmed=self._confirmed,
            on_reset=lambda _generation: self._reset(),
            on_room=self._sender.poke_if_waiting,
            on_state=self._publish_state,
        )
        self._consume = ConsumeLink(
            self._settings.broker,
            runtime.topology,
            queue=runtime.topology.reports_queue,
            client_name=f"{state.name}-reports",
            on_delivery=self._arrived.put,
            on_state=self._consume_state,
        )
        self._pulse = Pulse(
            runtime.database,
            self._settings,
            runtime.topology,
            runtime.writer,
            self._publish,
            head=lambda: self._relay.position,
            republished=lambda: self._sender.republished,
        )
        self._synchronization = Synchronization(
            runtime.database,
            self._settings,
            runtime.topology,
            writer=runtime.writer,
            link=self._publish,
            relay=self._relay,
            sender=self._sender,
            lists=self._lists,
            drained=self._drained,
        )
        self._control = Control(
            runtime.database,
            self._settings,
            runtime.topology,
            writer=runtime.writer,
            reader=runtime.reader,
            link=self._publish,
            head=lambda: self._relay.position,
            on_numbers=self._pulse.start,
            on_answer=self._synchronization.answered,
        )
        self._sender.use(self._publish)

    def run(self) -> None:
        """See the module's `run`."""
        self._lists.load()
        self._runtime.stop.working()
        self._log.info(
            "primary_started",
            epoch=self._position.epoch,
            sequence=self._position.sequence,
            tables=len(self._lists.tables),
        )
        self._publish.start()
        self._consume.start()
        self._crew.start("lock", self._runtime.lock.loop)
        self._crew.start_each_second("lists", self._look_around)
        self._crew.start_each_second("troubles", self._troubles.keep)
        self._crew.start("relay", self._relay_loop)
        self._crew.start("sender", self._sender_loop)
        self._crew.start("control", self._control_loop)
        self._crew.start("heartbeat", lambda: self._pulse.loop(self._runtime.stop))
        self._crew.start("session", lambda: self._synchronization.loop(self._runtime.stop))
        try:
            self._crew.wait()
            self._crew.join(self._settings.intervals.stop_within_s)
        finally:
            self._consume.stop()
            self._publish.stop()
        self._log.info("primary_stopped", sequence=self._position.sequence, confirmed=self._sender.confirmed)

    def _look_around(self) -> None:
        self._lists.refresh()
        self._watch.look()
        if self._control.silent_s() > self._settings.intervals.offline_after_s:
            self._consume.renew_after(self._settings.intervals.offline_after_s)

    @property
    def _position(self) -> Position:
        return self._relay.position

    def _relay_loop(self) -> None:
        stop, relay = self._runtime.stop, self._settings.relay
        with self._database.connect(read_only=True) as connection:
            state = nodestate.read_installed(connection, self._settings)
            connection.rollback()
        self._relay.begin_at(state.position)
        self._lists.follow(state.installed_ms)
        self._sender.offer((), self._relay.position.sequence)
        with self._database.guard():
            waker = self._database.dialect.waker(
                self._database.engine, stop, (relay.poll_min_ms / 1000, relay.poll_max_ms / 1000)
            )
        untidy, woken = 0, False
        cadence, before = Cadence(relay.gather_ms, relay.gather_max_ms), 0.0
        try:
            while not stop.is_set():
                begun = time.monotonic()
                drained = self._relay.drain()
                if drained is not None:
                    self._drained(drained)
                    untidy += drained.rows
                    if untidy > _TIDY_ROWS:
                        untidy = 0
                        with self._database.guard():
                            self._database.dialect.tidy(self._database.engine)
                    pause_s = cadence.pause_s(drained.rows, begun - before)
                    before = begun
                    pause_s = max(0.0, begun + pause_s - time.monotonic())
                    waker.found(pause_s)
                    stop.wait(pause_s)
                elif woken and self._database.dialect.wake:
                    self._synchronization.look()  # for that, perhaps
                self._relay.sweep()
                woken = waker.wait(_IDLE_S) and drained is None  # else it only looks once more
                self._troubles.over("relay")
        finally:
            self._relay.close()
            waker.close()

    def _drained(self, drained: Drained) -> None:
        self._sender.offer(drained.batches, drained.position.sequence)
        self._log.debug("drained", changes=drained.changes, sequence=drained.position.sequence)

    def _sender_loop(self) -> None:
        while not self._runtime.stop.is_set():
            self._sender.pump()
            self._troubles.over("sender")
            self._sender.wait(_IDLE_S)

    def _control_loop(self) -> None:
        try:
            self._serve_control()
        except Unavailable:
            self._consume.renew()  # what was taken in and not acknowledged would fill the prefetch
            raise

    def _serve_control(self) -> None:
        with self._database.connect() as connection, self._database.connect(read_only=True) as reading:
            self._control.start(connection)
            next_save = next_prune = time.monotonic()
            serving = False
            saved = -1
            while not self._runtime.stop.is_set():
                deliveries = gather(self._arrived, 0.01 if serving else 0.25)
                if deliveries:
                    self._control.take(connection, deliveries)
                    self._consume.done(deliveries[-1])
                serving = self._control.serve(reading)
                if time.monotonic() >= next_save and saved != self._sender.confirmed:
                    next_save = time.monotonic() + self._settings.intervals.heartbeat_s
                    saved = self._sender.confirmed
                    nodestate.save(connection, published=saved)
                    connection.commit()
                if time.monotonic() >= next_prune:
                    next_prune = time.monotonic() + self._settings.journal.prune_every_s
                    upto = journal.prunable(reading, self._settings.journal, saved, self._control.needed())
                    reading.rollback()
                    if upto:
                        journal.prune(connection, upto)
                        connection.commit()
                self._troubles.over("control")

    def _confirmed(self, token: object) -> None:
        if isinstance(token, int):
            self._sender.confirmed_up_to(token)
        elif isinstance(token, Sent):
            self._synchronization.confirmed(token)

    def _reset(self) -> None:
        self._sender.rewind()
        self._synchronization.reset()

    def _publish_state(self, state: LinkState) -> None:
        self._link_log.tell("broker_publish", state)
        if state.name == "ready":
            self._sender.poke()
        if state.name == "refused":
            self._crew.fail(self._publish.fault or Fault(state.reason or "the broker refused"))

    def _consume_state(self, state: LinkState) -> None:
        self._link_log.tell("broker_consume", state)
        if state.name == "refused":
            self._crew.fail(self._consume.fault or Fault(state.reason or "the broker refused"))
