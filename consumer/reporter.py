"""Tells the primary where this node stands: at once when it changes, and at an interval (DESIGN §2, report)."""

import threading
import time
from collections.abc import Callable

from common.bounds import as_sentence
from common.broker import PublishLink
from common.nodestate import iso
from common.settings import IntervalSettings
from common.stop import Stop
from common.topology import Topology
from common.wire import CatchUp, MessageKind, Report, Writer, encode_body
from consumer.standing import Standing, describe

_EXPIRES_S = 60.0


class Reporter:
    """Sends reports from its own thread, and catch-up requests for the applier's."""

    def __init__(
        self,
        link: PublishLink,
        topology: Topology,
        writer: Writer,
        primary: str,
        intervals: IntervalSettings,
        standing: Callable[[], Standing],
    ) -> None:
        self._link = link
        self._topology = topology
        self._writer = writer
        self._primary = primary
        self._intervals = intervals
        self._standing = standing
        self._number: int | None = None
        self._sending = threading.Lock()  # numbers are given and sent in one order, whichever thread speaks
        self._changed = threading.Event()

    def start(self, first_number: int) -> None:
        """Number messages from here on; before that none is sent."""
        with self._sending:
            self._number = first_number

    def changed(self) -> None:
        """The standing changed: report soon."""
        self._changed.set()

    def loop(self, stop: Stop) -> None:
        """Report until stop."""
        reported: object = None
        last = 0.0
        while not stop.is_set():
            self._changed.wait(min(self._intervals.report_s, 0.5))
            self._changed.clear()
            standing = self._standing()
            state, reason = describe(standing, self._intervals.offline_after_s)
            now = (standing.position, standing.quarantined, standing.refused, state, standing.trouble, standing.proven)
            if now == reported and time.monotonic() - last < self._intervals.report_s:
                continue
            if self._send(standing, state, reason):
                reported, last = now, time.monotonic()
            stop.wait(self._intervals.report_min_s)

    def ask(self, epoch: int, first: int, limit: int) -> bool:
        """Ask the primary for batches from its journal."""
        return self._publish(MessageKind.CATCH_UP, lambda number: CatchUp(number, first, limit), epoch)

    def _send(self, standing: Standing, state: str, reason: str | None) -> bool:
        def report(number: int) -> Report:
            return Report(
                number=number,
                state=str(state),
                epoch=standing.position.epoch,
                sequence=standing.position.sequence,
                hash=standing.position.hash,
                quarantined=standing.quarantined,
                lag_ms=standing.lag_ms,
                last_full_sync=iso(standing.last_full_sync_ms),
                reason=None if reason is None else as_sentence(reason),
                refused=dict(standing.refused),
                proven=standing.proven,
                equal_once=standing.equal_once,
                installed_session=standing.installed_session,
            )

        return self._publish(MessageKind.REPORT, report, standing.position.epoch)

    def _publish(self, kind: MessageKind, body: Callable[[int], Report | CatchUp], epoch: int) -> bool:
        with self._sending:
            if self._number is None:
                return False
            self._number += 1
            content = encode_body(body(self._number))
            message = self._writer.write(kind, content, epoch=epoch, audience=self._primary, expires_in_s=_EXPIRES_S)
            return self._link.publish(self._topology.reports_exchange, "", message, persistent=False)
