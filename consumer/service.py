"""A secondary's service: receiver, applier and reporter, each in its own thread (README, thread table)."""

import queue
import time
from dataclasses import replace

import structlog
from sqlalchemy.engine import Connection

from common import nodestate
from common.broker import ConsumeLink, Delivery, LinkState, PublishLink
from common.capture_watch import CaptureWatch
from common.crew import Crew
from common.errors import Fault, MessageRefused, Unavailable
from common.link_log import LinkLog
from common.live_lists import LiveLists
from common.runtime import Runtime
from common.session import Phase
from common.troubles import Troubles
from consumer.answers import Answers
from consumer.applier import Applier
from consumer.proof import Compared
from consumer.reporter import Reporter
from consumer.standing import Standing
from consumer.synchronizer import Over, Synchronizer

_AT_ONCE = 1000
_COMES_AGAIN_S = 5.0  # what could not be applied is delivered once more well before


def run(runtime: Runtime) -> None:
    """Serve as secondary until stop is set; raises what ended it otherwise."""
    SecondaryService(runtime).run()


class SecondaryService:
    """Puts a secondary's parts together and keeps them running."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings, state = runtime.settings, runtime.state
        self._log = structlog.get_logger("secondary")
        self._troubles = Troubles(runtime.database)
        self._link_log = LinkLog("secondary", self._troubles)
        self._crew = Crew(runtime.stop, self._troubles)
        self._lists = LiveLists(runtime.database, settings)
        self._watch = CaptureWatch(runtime.database, settings)
        self._arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._forgotten = 0
        self._over: Over | None = None
        self._stirred = 0.0  # when something arrived or went, or the applier began
        self._publish = PublishLink(
            settings.broker,
            runtime.topology,
            client_name=f"{state.name}-reports",
            lock=False,
            on_confirmed=lambda _token: None,
            on_reset=lambda _generation: None,
            on_state=lambda found: self._link_state("broker_publish", found, self._publish),
        )
        self._consume = ConsumeLink(
            settings.broker,
            runtime.topology,
            queue=runtime.topology.node_queue(state.name),
            client_name=f"{state.name}-consume",
            on_delivery=self._arrived.put,
            on_state=lambda found: self._link_state("broker_consume", found, self._consume),
        )
        self._reporter = Reporter(
            self._publish,
            runtime.topology,
            runtime.writer,
            state.primary_name,
            settings.intervals,
            standing=self._standing,
        )
        self._synchronizer = Synchronizer(
            runtime.database,
            settings,
            runtime.reader,
            self._lists,
            Answers(self._publish, runtime.topology, runtime.writer, state.primary_name),
            primary=state.primary_name,
            refused=self._refused_in_session,
            verified=self._verified,
        )
        self._sessions = ConsumeLink(
            settings.broker,
            runtime.topology,
            queue=runtime.topology.session_queue(state.name),
            client_name=f"{state.name}-session",
            on_delivery=self._synchronizer.arrived,
            on_state=lambda found: self._link_state("broker_session", found, self._sessions),
        )
        self._applier = Applier(
            runtime.database,
            settings,
            runtime.reader,
            self._lists,
            state.primary_name,
            ask=lambda first, limit: self._reporter.ask(state.position.epoch, first, limit),
            sessions=self._synchronizer,
        )

    def run(self) -> None:
        """See the module's `run`."""
        self._lists.load()
        self._runtime.stop.working()
        sequence = self._runtime.state.position.sequence
        self._log.info("secondary_started", sequence=sequence, tables=len(self._lists.tables))
        self._publish.start()
        self._consume.start()
        self._sessions.start()
        self._crew.start("lock", self._runtime.lock.loop)
        self._crew.start_each_second("lists", self._look_around)
        self._crew.start_each_second("troubles", self._troubles.keep)
        self._crew.start("applier", self._apply_loop)
        self._crew.start("reporter", lambda: self._reporter.loop(self._runtime.stop))
        self._crew.start("session", lambda: self._synchronizer.loop(self._runtime.stop, self._sessions))
        try:
            self._crew.wait()
            self._crew.join(self._runtime.settings.intervals.stop_within_s)
        finally:
            self._sessions.stop()
            self._consume.stop()
            self._publish.stop()
        self._log.info("secondary_stopped", sequence=self._applier.position.sequence)

    def _look_around(self) -> None:
        self._lists.refresh()
        self._watch.look()
        patience_s = self._runtime.settings.intervals.offline_after_s
        standing = self._applier.standing()
        silent = standing.heard_s is None or standing.heard_s > patience_s
        if silent or (standing.unanswered_s or 0.0) > patience_s:  # one binding may be gone and the other not
            self._consume.renew_after(patience_s)

    def _standing(self) -> Standing:
        phase = (self._synchronizer.phase or Phase.PAUSING) if self._applier.paused else None
        trouble = self._troubles.of("applier", "broker_consume")
        return replace(self._applier.standing(), trouble=trouble, session=phase)

    def _apply_loop(self) -> None:
        try:
            with self._runtime.database.connect() as connection:
                # It may be another node's: nothing is written yet.
                nodestate.read_installed(connection, self._runtime.settings)
                (first,) = nodestate.reserve_numbers(connection)
                if not self._stirred:
                    nodestate.save(connection, started_ms=nodestate.now_ms())
                connection.commit()  # before the session is one of replay, whose commits a crash of the server may take
                self._applier.load(connection)
                self._reporter.start(first)
                self._stirred = time.monotonic()
                while not self._runtime.stop.is_set():
                    self._work(connection)
        except Unavailable:
            self._forget_deliveries()
            raise

    def _work(self, connection: Connection) -> None:
        if self._applier.paused:
            self._wait_for_session(connection)
            return
        deliveries = self._gather(0.1)
        before = self._applier.position
        handled = self._applier.work(connection, deliveries)
        if deliveries:
            self._consume.done(deliveries[handled - 1])
        if self._applier.paused:  # what was taken in and not handled comes again
            self._forgotten = self._consume.generation
            self._consume.pause()
            self._reporter.changed()
            return
        stirred = bool(deliveries) or self._applier.position != before
        if stirred:
            self._stirred = time.monotonic()
            self._reporter.changed()
        # Where nothing came, what failed may come again any moment.
        if stirred or not self._applier.due or time.monotonic() - self._stirred > _COMES_AGAIN_S:
            self._troubles.over("applier")

    def _wait_for_session(self, connection: Connection) -> None:
        """The log rests here until the session is over, whatever becomes of it."""
        self._over = self._over or self._synchronizer.over()
        if self._over is None:
            self._runtime.stop.wait(0.02)
            self._troubles.over("applier")
            return
        self._applier.resume(connection, self._over)
        self._over = None
        self._consume.resume()
        self._stirred = time.monotonic()
        self._reporter.changed()

    def _verified(self, found: Compared) -> None:
        if not found.equal:  # written down before the primary hears it, whatever becomes of this service
            with self._runtime.database.connect() as connection:
                nodestate.save(connection, proven_ms=None, doubt=nodestate.DIFFERS)
                connection.commit()
        self._applier.compared(found)

    def _refused_in_session(self, exc: MessageRefused) -> None:
        with self._runtime.database.connect() as connection:
            nodestate.count_refusal(connection, exc.kind, "session", str(exc))
            connection.commit()

    def _forget_deliveries(self) -> None:
        """What was taken in and not committed comes again on a new channel; unacknowledged it would fill the prefetch."""
        self._forgotten = self._consume.generation
        self._consume.renew()

    def _gather(self, timeout_s: float) -> list[Delivery]:
        """What arrived, waiting for the first of it."""
        found: list[Delivery] = []
        until = time.monotonic() + timeout_s
        while len(found) < _AT_ONCE:
            try:
                left = max(0.0, until - time.monotonic())
                delivery = self._arrived.get_nowait() if found else self._arrived.get(timeout=left)
            except queue.Empty:
                break
            if delivery.generation > self._forgotten:
                found.append(delivery)
        return found

    def _link_state(self, event: str, state: LinkState, link: PublishLink | ConsumeLink) -> None:
        self._link_log.tell(event, state)
        if state.name == "refused":
            self._crew.fail(link.fault or Fault(state.reason or "the broker refused"))
