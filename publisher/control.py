"""The primary's ear: reports and catch-up requests in, batches from the journal out (TRAPS 11, 12)."""

import math
import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import structlog
from sqlalchemy import case, select
from sqlalchemy.engine import Connection

from common import freshness, nodestate
from common.bookkeeping import reports
from common.broker import Delivery, PublishLink
from common.changes import Position
from common.database import Database
from common.errors import MessageRefused
from common.freshness import Freshness
from common.logs import Seldom
from common.nodestate import State
from common.numbers import Numbers
from common.session import parse_answer
from common.settings import Settings
from common.topology import Topology
from common.wire import (
    CatchUp,
    Header,
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
from publisher.leading import Heard

_SLICE = 50
_SLICE_BYTES = 4 << 20


@dataclass
class _Serving:
    """A catch-up under way for one node."""

    next: int
    last: int


@dataclass(frozen=True)
class _Stands:
    """Where a secondary stood when it was heard last, by the monotonic clock, which nobody sets; None: the log does not serve it."""

    sequence: int | None
    at: float


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
        on_numbers: Callable[[int], None],
        on_answer: Callable[[Heard], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._topology = topology
        self._writer = writer
        self._reader = reader
        self._link = link
        self._head = head
        self._on_numbers = on_numbers
        self._on_answer = on_answer
        self._log = structlog.get_logger("control")
        self._told = Seldom()
        self._serving: dict[str, _Serving] = {}
        self._numbers: dict[str, Numbers] = {}
        self._number = 0
        self._freshness = Freshness(settings.trust.clock_tolerance_s)
        self._offsets: dict[str, float] = {}
        self._asked_number: dict[str, int] = {}
        self._stands: dict[str, _Stands] = {}
        self._asked_first: dict[str, int] = {}
        self._heard = time.monotonic()

    def silent_s(self) -> float:
        """For how long no secondary was heard."""
        return time.monotonic() - self._heard

    def start(self, connection: Connection) -> None:
        """Read what earlier runs knew."""
        self._number, beats = nodestate.reserve_numbers(connection, 2)
        known_numbers = connection.execute(select(reports.c.name, reports.c.number))
        self._numbers = {name: Numbers(number) for name, number in known_numbers}
        now = time.monotonic()
        for name, state, sequence in connection.execute(select(reports.c.name, reports.c.state, reports.c.sequence)):
            self._stands[name] = _Stands(_served(state, sequence), now)
        known = nodestate.offsets(connection)
        self._freshness = Freshness(self._settings.trust.clock_tolerance_s, known)
        self._offsets = known
        connection.commit()
        self._on_numbers(beats)

    def needed(self) -> int | None:
        """The first sequence that a secondary lacks which is waited for: not one that needs a full synchronization anyhow, and not
        one that has been silent for the journal's whole retention while this service ran. None: nobody waits."""
        since = time.monotonic() - self._settings.journal.max_age_hours * 3600
        known = (self._stands.get(name) for name in self._settings.cluster.names)
        waiting = [one.sequence for one in known if one is not None and one.sequence is not None and one.at >= since]
        return min(waiting) + 1 if waiting else None

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
        # A request is no more taken twice than a report, after a restart too.
        for name, number in self._asked_number.items():
            newer = (reports.c.name == name, reports.c.number < number)
            connection.execute(reports.update().where(*newer).values(number=number))
        self._asked_number.clear()
        self._save_offsets(connection)
        for (kind, source), count in refused.items():
            nodestate.count_refusal(connection, kind, source, texts[kind, source], count)
            if self._told.due(kind):
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
            if self._fresh(message.header, report.number):
                latest[sender] = report
        elif message.header.kind is MessageKind.CATCH_UP:
            self._asked(sender, message, parse_body(self._reader.open(message), CatchUp))
        elif message.header.kind is MessageKind.ANSWER:
            self._freshness.judge(message.header)
            answer = parse_answer(self._reader.open(message))
            self._on_answer(Heard(sender, message.header.previous, message.header.sequence, answer))
        else:
            raise MessageRefused("sender", f"a {message.header.kind} message of {sender!r}, who is not the primary")

    def _fresh(self, header: Header, number: int) -> bool:
        """Whether it is newer than all that came of its sender; else it is passed over. Raises MessageRefused."""
        numbers = self._numbers.setdefault(header.sender, Numbers())
        newest = numbers.judge(number, f"a message of {header.sender!r}")
        if newest:
            self._freshness.judge(header)
        numbers.take(number)
        return newest

    def _asked(self, sender: str, message: Verified, request: CatchUp) -> None:
        if not self._fresh(message.header, request.number):
            return
        self._asked_number[sender] = request.number
        head = self._head()
        if message.header.epoch > head.epoch:
            raise MessageRefused(
                "epoch", f"{sender!r} speaks of epoch {message.header.epoch}; this primary's is {head.epoch}"
            )
        last = min(head.sequence, request.first + max(1, request.limit) - 1)
        if request.first <= last:
            self._serving[sender] = _Serving(request.first, last)
            again = self._asked_first.get(sender) == request.first
            self._asked_first[sender] = request.first
            log = self._log.debug if again else self._log.info  # once more is no news
            log("catch_up_asked", by=sender, first=request.first, last=last)

    def _serve_one(self, connection: Connection, node: str, serving: _Serving) -> None:
        room = min((self._link.room() + 1) // 2, _SLICE, serving.last - serving.next + 1)
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

    def _save_offsets(self, connection: Connection) -> None:
        for name in self._numbers:
            before = self._offsets.get(name, 0.0)
            self._offsets[name] = nodestate.save_offset(connection, name, before, self._freshness.offset_ms(name))
            if self._offsets[name] and not before:
                self._log.warning("clock_differs", reason=freshness.sentence(name, self._offsets[name]))

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
        self._stands[name] = _Stands(_served(report.state, report.sequence), time.monotonic())
        values = {
            "number": report.number,
            "state": report.state if report.state in set(State) else State.OFFLINE,
            "epoch": report.epoch,
            "sequence": report.sequence,
            "hash": report.hash,
            "quarantined": report.quarantined,
            "lag_ms": report.lag_ms,
            "last_full_sync": report.last_full_sync,
            "proven": int(report.proven),
            "equal_once": int(report.equal_once),
            "reason": report.reason,
            "refused_json": orjson.dumps(report.refused).decode(),
            "heard_ms": nodestate.now_ms(),
        }
        newest, its = reports.c.installed_session, report.installed_session
        went_back = {
            "went_back": case((newest > its, 1), else_=0),
            "installed_session": case((newest < its, its), else_=newest),
        }
        if not connection.execute(reports.update().where(reports.c.name == name).values(**values, **went_back)).rowcount:
            connection.execute(reports.insert().values(name=name, **values, installed_session=its))


def _served(state: str, sequence: int) -> int | None:
    return None if state == State.NEEDS_FULL_SYNC else sequence


def gather(arrived: "queue.SimpleQueue[Delivery]", timeout_s: float, limit: int = 200) -> list[Delivery]:
    """Wait for a delivery at most `timeout_s`, then take what else is there."""
    found: list[Delivery] = []
    until = time.monotonic() + timeout_s
    while len(found) < limit:
        try:
            found.append(arrived.get(timeout=max(0.0, until - time.monotonic())) if not found else arrived.get_nowait())
        except queue.Empty:
            break
    return found
