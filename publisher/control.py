"""The primary's ear: reports and catch-up requests in, batches from the journal out (TRAPS 11, 12)."""

import math
import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import structlog
from sqlalchemy import select
from sqlalchemy.engine import Connection

from common import nodestate
from common.bookkeeping import reports
from common.broker import Delivery, PublishLink
from common.changes import Position
from common.database import Database
from common.errors import MessageRefused
from common.nodestate import State
from common.settings import Settings
from common.topology import Topology
from common.wire import (
    CatchUp,
    MessageKind,
    PastRetention,
    Reader,
    Report,
    Verified,
    Writer,
    encode_body,
    parse_body,
)
from publisher import journal

_SLICE = 50
_SLICE_BYTES = 4 << 20


@dataclass
class _Serving:
    """A catch-up under way for one node."""

    next: int
    last: int


class Control:
    """Owns what the secondaries said and asked. One thread calls it; deliveries come through a queue."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        topology: Topology,
        *,
        writer: Writer,
        reader: Reader,
        link: PublishLink,
        head: Callable[[], Position],
    ) -> None:
        self._database = database
        self._settings = settings
        self._topology = topology
        self._writer = writer
        self._reader = reader
        self._link = link
        self._head = head
        self._log = structlog.get_logger("control")
        self._serving: dict[str, _Serving] = {}
        self._numbers: dict[str, int] = {}
        self._number = 0
        self._heard = time.monotonic()

    def silent_s(self) -> float:
        """For how long no secondary was heard."""
        return time.monotonic() - self._heard

    def start(self, connection: Connection) -> None:
        """Read what earlier runs knew."""
        self._number = nodestate.reserve_numbers(connection)
        self._numbers = dict(connection.execute(select(reports.c.name, reports.c.number)).all())
        connection.commit()

    def take(self, connection: Connection, deliveries: list[Delivery]) -> None:
        """Handle what arrived: only the last report of each node is written."""
        latest: dict[str, Report] = {}
        refused: Counter[tuple[str, str]] = Counter()
        texts: dict[tuple[str, str], str] = {}
        for delivery in deliveries:
            try:
                self._handle(delivery, latest)
            except MessageRefused as exc:
                if exc.kind == "replayed" and delivery.redelivered:
                    continue  # the broker gave it again after a lost connection
                key = (exc.kind, "reports")
                refused[key] += 1
                texts[key] = str(exc)
        for name, report in latest.items():
            self._save(connection, name, report)
        for (kind, source), count in refused.items():
            for _ in range(count):
                if nodestate.count_refusal(connection, kind, source, texts[kind, source]):
                    self._log.warning("message_refused", kind=kind, source=source, reason=texts[kind, source])
        connection.commit()

    def serve(self, connection: Connection) -> bool:
        """Send the next slice to nodes that catch up, at most half of the link's room; True while there is more to send.

        It only reads.
        """
        for node in list(self._serving):
            self._serve_one(connection, node, self._serving[node])
        connection.rollback()
        return bool(self._serving)

    def _handle(self, delivery: Delivery, latest: dict[str, Report]) -> None:
        message = self._reader.verify(delivery.body)
        self._heard = time.monotonic()
        sender = message.header.sender
        if delivery.user_id is None and self._settings.broker.require_user_id:
            raise MessageRefused(
                "sender", f"a message of {sender!r} without the broker's proof of who published it (TRAPS 19)"
            )
        if message.header.kind is MessageKind.REPORT:
            report = parse_body(self._reader.open(message), Report)
            if report.lag_ms is not None and not math.isfinite(report.lag_ms):
                raise MessageRefused("malformed", f"a report of {sender!r} with a lag that is no number")
            self._check_number(sender, report.number)
            latest[sender] = report
        elif message.header.kind is MessageKind.CATCH_UP:
            self._asked(sender, message, parse_body(self._reader.open(message), CatchUp))
        else:
            raise MessageRefused("sender", f"a {message.header.kind} message of {sender!r}, who is not the primary")

    def _check_number(self, sender: str, number: int) -> None:
        if number <= self._numbers.get(sender, 0):
            raise MessageRefused("replayed", f"a message of {sender!r} that was received before, or an older one")
        self._numbers[sender] = number

    def _asked(self, sender: str, message: Verified, request: CatchUp) -> None:
        self._check_number(sender, request.number)
        head = self._head()
        if message.header.epoch > head.epoch:
            raise MessageRefused(
                "epoch", f"{sender!r} speaks of epoch {message.header.epoch}; this primary's is {head.epoch}"
            )
        last = min(head.sequence, request.first + max(1, request.limit) - 1)
        if request.first <= last:
            self._serving[sender] = _Serving(request.first, last)
            self._log.info("catch_up_asked", by=sender, first=request.first, last=last)

    def _serve_one(self, connection: Connection, node: str, serving: _Serving) -> None:
        room = min(self._link.room() // 2, _SLICE, serving.last - serving.next + 1)
        if room <= 0:
            return
        found = journal.read(connection, serving.next, room, _SLICE_BYTES)
        if not found:
            self._past_retention(connection, node, serving.next)
            del self._serving[node]
            return
        for sequence, message in found:
            if not self._link.publish(self._topology.direct_exchange, node, message):
                return
            serving.next = sequence + 1
        if serving.next > serving.last:
            del self._serving[node]

    def _past_retention(self, connection: Connection, node: str, asked: int) -> None:
        head = self._head()
        self._number += 1
        available = journal.first_sequence(connection, asked) or head.sequence + 1
        body = encode_body(PastRetention(self._number, asked, available, head.sequence))
        message = self._writer.write(
            MessageKind.PAST_RETENTION,
            body,
            epoch=head.epoch,
            sequence=head.sequence,
            audience=node,
            expires_in_s=60,
        )
        self._link.publish(self._topology.direct_exchange, node, message, persistent=False)
        self._log.warning("catch_up_past_retention", node=node, asked=asked)

    def _save(self, connection: Connection, name: str, report: Report) -> None:
        values = {
            "number": report.number,
            "state": report.state if report.state in set(State) else State.OFFLINE,
            "epoch": report.epoch,
            "sequence": report.sequence,
            "hash": report.hash,
            "quarantined": report.quarantined,
            "lag_ms": report.lag_ms,
            "last_full_sync": report.last_full_sync,
            "reason": report.reason,
            "refused_json": orjson.dumps(report.refused).decode(),
            "heard_ms": nodestate.now_ms(),
        }
        if not connection.execute(reports.update().where(reports.c.name == name).values(**values)).rowcount:
            connection.execute(reports.insert().values(name=name, **values))


def gather(arrived: "queue.Queue[Delivery]", timeout_s: float, limit: int = 200) -> list[Delivery]:
    """Wait for a delivery at most `timeout_s`, then take what else is there."""
    found: list[Delivery] = []
    until = time.monotonic() + timeout_s
    while len(found) < limit:
        try:
            found.append(arrived.get(timeout=max(0.0, until - time.monotonic())) if not found else arrived.get_nowait())
        except queue.Empty:
            break
    return found
