"""The secondary's worker: judges what arrives, applies it with its position, asks for what is missing (DESIGN §7).

One thread calls it and owns its state and its database connection; pika's threads only put deliveries into a queue and never
wait for the database (TRAPS 24).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog
from sqlalchemy.engine import Connection

from common import nodestate
from common.broker import Delivery
from common.changes import Frame, Position, decode_frames
from common.database import Database
from common.dialects.script import Script
from common.errors import Fault, MessageRefused, NeedsFullSync, Unavailable
from common.freshness import Freshness, sentence
from common.live_lists import LiveLists
from common.logs import Seldom
from common.nodestate import State
from common.numbers import Numbers
from common.session import Begin, Mode, parse_said
from common.settings import Settings
from common.wire import Heartbeat, MessageKind, PastRetention, Reader, Verified, parse_body
from consumer.gate import Assembly, Verdict
from consumer.missing import Missing
from consumer.proof import Compared, Proof
from consumer.replay import FAST_BYTES, Unit
from consumer.retries import Retries
from consumer.standing import Standing, hindered
from consumer.synchronizer import Begun, Over
from consumer.transactions import Transactions

_UNFOLDS = 8  # what a sealed body unfolds to, roughly
_AGAIN = 1000
_PAUSED = "a full synchronization is under way"
_TOO_SMALL = "; replay.max_change_bytes is too small here: raise it and start the service again"


class Sessions(Protocol):
    """What leads sessions on this node (consumer.synchronizer)."""

    def begin(self, begun: Begun) -> None:
        """A session begins; the log is at rest, or a snapshot of it is given."""

    def knows(self, begun: Begun) -> bool:
        """Whether this session has begun here, in this process."""

    def refuse(self, begun: Begun, sequence: int, why: str, *, again: bool) -> None:
        """This node takes no part."""


class Applier:
    """See the module. `ask(first, limit)` sends a catch-up request; False: it could not be sent now."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        reader: Reader,
        lists: LiveLists,
        primary: str,
        ask: Callable[[int, int], bool],
        sessions: Sessions | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._reader = reader
        self._lists = lists
        self._missing = Missing(ask, settings.intervals.catch_up_retry_s)
        self._transactions = Transactions(database, lists, settings.replay.statement_bytes, self._move)
        self._sessions = sessions
        self._session_number = self._installed_session = 0
        self._hindered = b""  # the session that could not begin, the database being away
        self._declined: str | None = None  # what the primary was told then
        self._proof = Proof()
        self._compared: deque[Compared] = deque()
        self.paused = False
        self._log = structlog.get_logger("applier")
        self._position = Position(1, 0)
        self._assembly = Assembly(self._position, primary, settings.replay.hold_bytes)
        self._primary = primary
        self._head = (1, 0)
        self._beats = Numbers()
        self._answers = Numbers()
        self._at_last_beat = 0
        self._heard: float | None = None
        self._saved_beat = 0
        self._retries = Retries(database, lists, self._transactions.replayer, settings.replay.retry_quarantine_s)
        self._lag_ms: float | None = None
        self._needs: str | None = None
        self._stuck: str | None = None
        self._saved_stuck: str | None = None
        self._began = time.monotonic()
        self._refused: dict[str, int] = {}
        self._told = Seldom()
        self._last_full_sync_ms: int | None = None
        self._published = 0
        self._again: list[int] = []
        self._freshness = Freshness(settings.trust.clock_tolerance_s)
        self._loaded = False
        self._offset_ms = 0.0
        self._opened: tuple[Verified, bytes] | None = None

    def load(self, connection: Connection) -> None:
        """Begin from what the database says, on a connection that from now on replays."""
        self._database.dialect.mark_session(connection)
        state = nodestate.read_installed(connection, self._settings)
        self._position = state.position
        self._assembly.reset(state.position)
        self._head = max(self._head, state.head)
        if state.heard_number > self._beats.highest:
            self._beats = Numbers(state.heard_number)
        self._needs = state.reason if state.state is State.NEEDS_FULL_SYNC else None
        if self._needs is not None and self._needs.endswith(_TOO_SMALL):
            self._needs = None  # it may have been raised; if not, that is found out again
        self._saved_stuck = state.reason if state.state is State.REFUSED else None
        self._lag_ms = state.lag_ms
        self._last_full_sync_ms = state.last_full_sync_ms
        self._session_number = state.session_number
        self._installed_session = state.installed_session
        self._proof.load(state)
        self._refused = nodestate.refused(connection)
        known = nodestate.offsets(connection)
        if not self._loaded:  # what was learned since is newer
            self._freshness = Freshness(self._settings.trust.clock_tolerance_s, known)
            self._loaded = True
        self._offset_ms = known.get(self._primary, 0.0)
        self._transactions.count_quarantined(connection)
        self._lists.follow(state.installed_ms)

    @property
    def position(self) -> Position:
        """Where this node stands."""
        return self._position

    @property
    def due(self) -> bool:
        """Whether the primary has more than this node, as far as is known."""
        return self._head[1] > self._position.sequence

    def standing(self) -> Standing:
        """This moment, for reports."""
        return Standing(
            position=self._position,
            head=self._head,
            quarantined=self._transactions.quarantined,
            refused=tuple(sorted(self._refused.items())),
            lag_ms=self._lag_ms,
            last_full_sync_ms=self._last_full_sync_ms,
            heard_s=None if self._heard is None else time.monotonic() - self._heard,
            needs_full_sync=self._needs,
            stuck=self._stuck,
            unanswered_s=self._missing.unanswered_s,
            proven=self._proof.proven,
            equal_once=self._proof.equal_once,
            doubt=self._proof.doubt,
            installed_session=self._installed_session,
        )

    def work(self, connection: Connection, deliveries: Sequence[Delivery]) -> int:
        """Handle what arrived (perhaps nothing) and what is due; how much of it was handled: where a session begins that pauses the
        log, what follows is to come again after it. Raises Unavailable: then `load`, and nothing is lost."""
        handled = 0
        for delivery in deliveries:
            handled += 1
            try:
                begun = self._receive(connection, delivery)
                if begun is not None and self._meet(connection, begun):
                    return handled
            except MessageRefused as exc:
                if exc.kind == "replayed" and delivery.redelivered:
                    continue  # the broker gave it again after a lost connection
                self._refuse(connection, exc)
            except NeedsFullSync as exc:
                self._give_up(connection, str(exc))
        self._apply_ready(connection)
        self._after(connection)
        return handled

    def resume(self, connection: Connection, over: Over) -> None:
        """The session is over that had paused the log: go on from where the database now stands."""
        before, needs = self._position, self._needs
        if over.installed:
            self._head = (1, 0)  # of another history, perhaps
        self.load(connection)
        if over.installed:
            self._compared.clear()  # of before
            self._at_last_beat = 0
            self._stuck = None
            self._missing.came()
            # What the queue still holds of what the session made needless is no attack.
            self._missing.asked_up_to = max(self._missing.asked_up_to, self._position.sequence, before.sequence)
        elif needs is not None:
            self._needs = None
            self._give_up(connection, needs)
        elif over.differs:  # it follows the log all the same
            self._proof.doubted(connection, nodestate.UNMENDED)
        elif over.refused is not None:
            self._proof.doubted(connection, f"{nodestate.LEFT_OUT}: {over.refused}")
        nodestate.save(connection, **self._state_now())
        connection.commit()
        self.paused = False

    def compared(self, found: Compared) -> None:
        """A verification has compared this node with the primary; any thread may call."""
        self._compared.append(found)

    def _meet(self, connection: Connection, begun: Begun) -> bool:
        """Bring the log to rest where a session begins; whether it is paused from now on."""
        self._apply_ready(connection)
        self._take_compared(connection)  # before another one changes what it was about
        sequence = self._position.sequence
        if self._sessions is None:
            return False
        pauses = begun.begin.mode is Mode.SYNC
        if begun.id == self._hindered and self._declined is not None:  # it goes on without this node
            if pauses:
                self._proof.doubted(connection, f"{nodestate.LEFT_OUT}: {self._declined}")
            return False
        try:
            with self._database.guard():
                state = {"state": State.PAUSED, "reason": _PAUSED} if pauses and not self._needs else {}
                nodestate.save(connection, session_number=begun.begin.number, **state)
                connection.commit()
        except Unavailable as exc:
            again = begun.id == self._hindered  # on another connection by now: the others need not wait for it
            self._hindered, self._declined = begun.id, f"it could take no part: {exc}" if again else None
            if self._declined is not None:
                self._sessions.refuse(begun, sequence, self._declined, again=False)
            raise
        self._session_number = begun.begin.number
        self._hindered, self._declined = b"", None
        if pauses:
            self.paused = True
            self._sessions.begin(begun)
            return True
        there = (begun.epoch, begun.begin.sequence, begun.begin.hash)
        here = (self._position.epoch, sequence, self._position.hash)
        if self._needs is not None:
            self._sessions.refuse(begun, sequence, f"it needs a full synchronization: {self._needs}", again=False)
        elif here != there:
            why = f"it stands at sequence {sequence}, and not at {begun.begin.sequence}, which is to be compared"
            self._sessions.refuse(begun, sequence, why, again=True)
        else:
            self._verify(begun)
        return False

    def _verify(self, begun: Begun) -> None:
        """Begin to read at this position; replay goes on."""
        snapshot = self._database.open(read_only=True)
        with self._database.guard():
            standing = nodestate.read(snapshot)
        if standing is None or standing.position != self._position or self._sessions is None:
            snapshot.close()
            raise Fault("the position in the database is not where it was left: does another service run on this database?")
        self._sessions.begin(replace(begun, snapshot=snapshot))

    def _apply_ready(self, connection: Connection) -> None:
        while self._assembly.ready and self._needs is None:
            try:
                self._apply(connection)
            except MessageRefused as exc:  # signed by the primary, complete, and yet not readable: no catch-up mends it
                connection.rollback()
                self._refuse(connection, exc)
                remedy = _TOO_SMALL if exc.kind == "size" else ""
                self._give_up(
                    connection,
                    f"the change set after sequence {self._position.sequence} cannot be read: {exc}{remedy}",
                )

    def _receive(self, connection: Connection, delivery: Delivery) -> Begun | None:
        message = self._reader.verify(delivery.body)
        kind = message.header.kind
        if message.header.sender != self._primary:
            raise MessageRefused(
                "sender", f"a {kind} message of {message.header.sender!r}; the primary is {self._primary!r}"
            )
        if message.header.epoch < self._position.epoch:
            raise MessageRefused(
                "epoch",
                f"a {kind} message of epoch {message.header.epoch}; this node is in {self._position.epoch}",
            )
        if kind is MessageKind.BATCH:
            self._batch(message, redelivered=delivery.redelivered)
        elif kind is MessageKind.HEARTBEAT:
            self._heartbeat(connection, message, parse_body(self._reader.open(message), Heartbeat))
        elif kind is MessageKind.PAST_RETENTION:
            answer = parse_body(self._reader.open(message), PastRetention)
            newer = self._answers.judge(answer.number, f"an answer of {message.header.sender!r}")
            if newer:
                self._freshness.judge(message.header)
            self._answers.take(answer.number)
            if newer and answer.asked == self._assembly.position.sequence + 1 and answer.journal_first > answer.asked:
                self._give_up(connection, self._past_retention(answer.journal_first))
        elif kind is MessageKind.SESSION:
            return self._begun(message)
        else:
            raise MessageRefused("sender", f"a {kind} message where only the primary speaks")
        return None

    def _begun(self, message: Verified) -> Begun | None:
        """A session that begins here; each only once, and none of an earlier time (TRAPS 34)."""
        said = parse_said(self._reader.open(message))
        if not isinstance(said, Begin) or message.header.sequence != 1:
            raise MessageRefused("malformed", "a session's message in the queue of the log that does not begin one")
        if said.number < self._session_number:
            raise MessageRefused("replayed", "the beginning of a session that was over before")
        self._freshness.judge(message.header)
        if self._settings.node.name not in said.nodes:
            return None
        begun = Begun(message.header.previous, message.header.epoch, said)
        if said.number > self._session_number:
            return begun
        if self._sessions is not None and not self._sessions.knows(begun):
            self._sessions.refuse(begun, self._position.sequence, "its service was started again meanwhile", again=False)
        return None

    def _batch(self, message: Verified, *, redelivered: bool) -> None:
        if self._needs is not None:
            self._see_head(message.header.epoch, message.header.sequence)
            return
        self._opened = (message, self._reader.open(message))
        verdict = self._assembly.offer(message)
        if verdict is Verdict.APPLY:
            self._missing.came()
        self._see_head(message.header.epoch, message.header.sequence)
        asked = message.header.sequence <= self._missing.asked_up_to
        if verdict is not Verdict.DROP or redelivered or asked:
            return
        if message.header.sequence <= self._published:
            raise MessageRefused("replayed", _once_more(message.header.sequence, message.header.sender))
        if len(self._again) < _AGAIN:
            self._again.append(message.header.sequence)  # the next heartbeat tells whether the primary itself did that

    def _heartbeat(self, connection: Connection, message: Verified, beat: Heartbeat) -> None:
        if not self._beats.judge(beat.number, f"a heartbeat of {message.header.sender!r}"):
            self._beats.take(beat.number)
            return
        self._freshness.judge(message.header)
        self._beats.take(beat.number)
        self._heard = time.monotonic()
        self._published = max(self._published, beat.published)
        again, self._again = self._again, []
        for sequence in again:
            if sequence > beat.republished:
                self._refuse(connection, MessageRefused("replayed", _once_more(sequence, message.header.sender)))
        self._head = max(self._head, (message.header.epoch, beat.sequence))
        position = self._position
        if self._head[1] <= position.sequence:
            self._stuck = None
        before, self._at_last_beat = self._at_last_beat, position.sequence
        restored = beat.sequence < before  # what this node had at the last heartbeat, the primary must have by this one
        if restored or (position.sequence and beat.sequence == position.sequence and beat.hash != position.hash):
            raise NeedsFullSync(
                f"the primary stands at sequence {beat.sequence} of a history that is not this node's, which is at "
                f"{position.sequence}; was the primary's database restored from a backup?"
            )
        first, here = beat.journal_first or beat.sequence + 1, self._assembly.position.sequence
        if self._needs is None and here < beat.sequence and here + 1 < first:
            raise NeedsFullSync(self._past_retention(first))

    def _past_retention(self, first: int) -> str:
        return (
            f"this node has sequence {self._position.sequence} and the primary's journal begins at {first}: what lies between is "
            "past retention"
        )

    def _see_head(self, epoch: int, sequence: int) -> None:
        self._head = max(self._head, (epoch, sequence))

    def _apply(self, connection: Connection) -> None:
        """As many ready change sets as fit one transaction."""
        batches, size = 0, 0
        units: list[Unit] = []
        for parts in self._assembly.ready:
            unit = self._unit(parts)
            batches, size = batches + len(parts), size + unit.size
            if units and (batches > self._settings.replay.group_batches or size > FAST_BYTES):
                break
            units.append(unit)
        self._transactions.apply(connection, units)

    def _move(self, script: Script, count: int, replays_by: int) -> Callable[[], None]:
        """See transactions.Move (TRAPS 7)."""
        newest = self._assembly.ready[count - 1][-1]
        after = Position(newest.header.epoch, newest.header.sequence, newest.hash)
        lag_ms = self._freshness.late_ms(self._primary, newest.header.issued_ms)
        nodestate.advance(
            script,
            self._position,
            after,
            replays_by,
            lag_ms=lag_ms,
            heard_number=self._beats.highest,
            head_epoch=self._head[0],
            head_sequence=self._head[1],
        )
        return partial(self._taken, count, after, lag_ms)

    def _taken(self, count: int, after: Position, lag_ms: float | None) -> None:
        self._assembly.taken(count)
        self._position, self._lag_ms, self._stuck = after, lag_ms, None
        self._missing.applied()
        self._log.debug("applied", sequence=after.sequence, units=count)

    def _unit(self, parts: tuple[Verified, ...]) -> Unit:
        limit = self._settings.replay.max_change_bytes

        def frames() -> Iterator[Frame]:
            return decode_frames(map(self._open, parts), max_frame_bytes=limit)

        header = parts[0].header
        size = sum(part.size for part in parts) * _UNFOLDS
        return Unit(header.epoch, header.sequence, size, frames)

    def _open(self, part: Verified) -> bytes:
        """Its body; that of the last which came is still there, for one by one that is all there is."""
        opened = self._opened
        return opened[1] if opened is not None and opened[0] is part else self._reader.open(part)

    def _after(self, connection: Connection) -> None:
        if self._needs is None:
            self._missing.look(self._assembly.position.sequence + 1, self._head[1], waiting=self._assembly.waiting)
        if self._transactions.quarantined and self._retries.work(connection, self._missing.progress):
            self._transactions.count_quarantined(connection)
        self._take_compared(connection)
        if self._heard is not None and self._beats.highest != self._saved_beat:
            self._save_heard(connection, time.monotonic() - self._heard)
        if self._stuck != self._saved_stuck:
            nodestate.save(connection, **self._state_now())
            connection.commit()

    def _take_compared(self, connection: Connection) -> None:
        while self._compared:
            if self._needs is None:
                self._proof.compared(connection, self._compared[0])
            self._compared.popleft()

    def _save_heard(self, connection: Connection, age_s: float) -> None:
        """Each heartbeat's number is kept, so that an older one is known as such after a restart too (TRAPS 34)."""
        nodestate.save(
            connection,
            heard_ms=nodestate.now_ms() - int(age_s * 1000),
            heard_number=self._beats.highest,
            head_epoch=self._head[0],
            head_sequence=self._head[1],
            **self._state_now(),
        )
        before = self._offset_ms
        self._offset_ms = nodestate.save_offset(connection, self._primary, before, self._freshness.offset_ms(self._primary))
        self._proof.look(connection)
        connection.commit()
        if self._offset_ms and not before:
            self._log.warning("clock_differs", reason=sentence(self._primary, self._offset_ms))
        self._saved_beat = self._beats.highest

    def _state_now(self) -> dict[str, str | None]:
        """What is about to be saved of it."""
        self._saved_stuck = self._stuck
        state = State.NEEDS_FULL_SYNC if self._needs else State.REFUSED if self._stuck else State.CATCHING_UP
        return {"state": state, "reason": self._needs or self._stuck}

    def _refuse(self, connection: Connection, exc: MessageRefused) -> None:
        nodestate.count_refusal(connection, exc.kind, "events", str(exc))
        connection.commit()
        self._refused = nodestate.refused(connection)
        connection.rollback()
        if self._told.due(exc.kind):
            self._log.warning("message_refused", kind=exc.kind, source="events", reason=str(exc))
        since = self._began if self._heard is None else self._heard
        silent = time.monotonic() - since > self._settings.intervals.offline_after_s
        self._stuck = hindered(exc, self._position.sequence + 1, self._head[1], silent=silent) or self._stuck

    def _give_up(self, connection: Connection, reason: str) -> None:
        if self._needs is not None:
            return
        self._needs, self._proof.proven = reason, False
        self._missing.over()
        nodestate.save(connection, state=State.NEEDS_FULL_SYNC, reason=reason, proven_ms=None)
        connection.commit()
        self._log.error("needs_full_sync", reason=reason)


def _once_more(sequence: int, sender: str) -> str:
    return f"batch {sequence} of {sender!r} once more"
