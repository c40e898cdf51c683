"""This node's side of a session: it compares itself with the primary, receives what it lacks and installs it (DESIGN §8).

One thread owns it. The applier hands a session over as it begins, with the log at rest (or with a snapshot, to verify), and looks
whether it is over; the link's thread puts what the primary says into a queue.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.engine import Connection

from common.bounds import as_sentence
from common.broker import ConsumeLink, Delivery
from common.database import Database
from common.errors import MessageRefused, StsyncError
from common.freshness import Freshness
from common.live_lists import Lists, LiveLists
from common.session import Alive, Answer, Begin, Cancel, Done, Mode, Phase, Progress, Ready, Result, parse_said
from common.settings import Settings
from common.stop import Stop
from common.wire import MessageKind, Reader, Verified
from consumer.answers import Answers
from consumer.node_session import NodeSession, unlike
from consumer.proof import Compared

_TICK_S = 1.0
_FIRST_WORD_S = 15.0  # the primary says each second that a session goes on; else it was over before it began here


@dataclass(frozen=True)
class Begun:
    """A session that begins on this node. `snapshot`, to verify: a connection whose transaction stands at its position."""

    id: bytes
    epoch: int
    begin: Begin
    snapshot: Connection | None = None


@dataclass(frozen=True)
class Over:
    """How a session ended that had paused the log here; `differs`: this node is known not to equal the primary; `refused`: why it
    could take no part."""

    installed: bool
    differs: bool = False
    refused: str | None = None


class Synchronizer:
    """See the module. `refused` counts a message that failed a check, `verified` is told what a comparison found."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        reader: Reader,
        lists: LiveLists,
        answers: Answers,
        *,
        primary: str,
        refused: Callable[[MessageRefused], None],
        verified: Callable[[Compared], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._reader = reader
        self._lists = lists
        self._answers = answers
        self._primary = primary
        self._refused = refused
        self._verified = verified
        self._freshness = Freshness(settings.trust.clock_tolerance_s)
        self._inbox: queue.SimpleQueue[Begun | Delivery] = queue.SimpleQueue()
        self._over: queue.SimpleQueue[Over] = queue.SimpleQueue()
        self._session: NodeSession | None = None
        self._heard = time.monotonic()
        self._asked_again = 0.0
        self._epoch = 0
        self._log = structlog.get_logger("session")

    def begin(self, begun: Begun) -> None:
        """A session begins; any thread may call."""
        self._inbox.put(begun)

    def arrived(self, delivery: Delivery) -> None:
        """The primary said something in a session; any thread may call."""
        self._inbox.put(delivery)

    def over(self) -> Over | None:
        """How the session ended that had paused the log, told once."""
        try:
            return self._over.get_nowait()
        except queue.Empty:
            return None

    @property
    def phase(self) -> Phase | None:
        """How far the session is that has paused the log here."""
        session = self._session
        return session.phase if session is not None and session.mode is Mode.SYNC else None

    def knows(self, begun: Begun) -> bool:
        """See the applier's Sessions."""
        return self._answers.session == begun.id

    def refuse(self, begun: Begun, sequence: int, why: str, *, again: bool) -> None:
        """Say that this node takes no part, and why."""
        self._answers.open(begun.id, begun.epoch)
        self._answers.say(Ready(sequence, as_sentence(why), again))

    def loop(self, stop: Stop, link: ConsumeLink) -> None:
        """Serve sessions until stop; another thread tells how far they are, for comparing and installing take their time."""
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended,), name="stsync-progress", daemon=True)
        teller.start()
        try:
            while not stop.is_set():
                try:
                    item = self._inbox.get(timeout=0.2)
                except queue.Empty:
                    self._tend()
                    continue
                if isinstance(item, Begun):
                    self._begin(item)
                else:
                    self._hear(item)
                    link.done(item)
                self._tend()
        finally:
            self._end(Over(installed=False))
            ended.set()

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK_S):
            session = self._session
            if session is not None:
                self._answers.tell(Progress(session.phase, session.inlet.received, session.rows))

    def _begin(self, begun: Begun) -> None:
        self._end(Over(installed=False))
        self._answers.open(begun.id, begun.epoch)
        self._epoch = begun.epoch
        self._heard = time.monotonic()
        here, faulty = self._read_lists()
        self._session = session = NodeSession(
            self._database, self._settings, self._reader, here, begun.begin, begun.id, begun.epoch, begun.snapshot
        )
        self._log.info("session_began", mode=str(begun.begin.mode), sequence=begun.begin.sequence)
        why = faulty or unlike(begun.begin, here.tables, self._settings.node.name)
        if why is not None:
            self._answers.say(Ready(begun.begin.sequence, as_sentence(why)))
            self._end(Over(installed=False, refused=why))
            return
        self._answers.say(Ready(begun.begin.sequence))
        self._do(session.look)

    def _read_lists(self) -> tuple[Lists, str | None]:
        """What the tables are now, whether or not `install` has run since they were changed; and why that cannot be said."""
        try:
            return self._lists.as_they_are(), None
        except StsyncError as exc:
            return self._lists.present, str(exc)

    def _hear(self, delivery: Delivery) -> None:
        session = self._session
        try:
            message = self._of_this_session(delivery)
            if message is None:
                return
            said = parse_said(self._reader.open(message))
        except MessageRefused as exc:
            self._refused(exc)
            return
        self._heard = time.monotonic()
        if session is not None:
            session.heard = True
        if isinstance(said, Alive):
            self._answers.heard(said.heard.get(self._settings.node.name, 0))
            if session is not None:
                session.inlet.announce(said.sent)
            return
        if session is None or isinstance(said, Begin):
            return  # it is over here, or it has begun
        if isinstance(said, Cancel):
            self._fail(said.reason)
            return
        session.remember(message.header.sequence, message)
        for number, one in session.inlet.take(message.header.sequence, said):
            self._do(partial(session.handle, number, one))
            if self._session is not session:
                return

    def _of_this_session(self, delivery: Delivery) -> Verified | None:
        """None of one that was over before, or has not begun here; raises MessageRefused."""
        message = self._reader.verify(delivery.body)
        header = message.header
        if header.kind is not MessageKind.SESSION or header.sender != self._primary:
            raise MessageRefused("sender", f"a {header.kind} message of {header.sender!r} where only sessions are led")
        if header.previous != self._answers.session or header.epoch < self._epoch:
            return None
        self._freshness.judge(header)
        return message

    def _do(self, work: Callable[[], Sequence[Answer]]) -> None:
        """A step of the session; what goes wrong ends it, with its reason."""
        session = self._session
        try:
            for answer in work():
                self._answers.say(answer)
            if session is not None and session.done is not None and session.mode is not Mode.SYNC:
                self._verified(session.compared)  # first: whoever hears that it is over may begin the next
        except OSError as exc:
            self._fail(f"this node's disk: {exc.strerror}")
            return
        except (StsyncError, UnicodeError) as exc:
            self._fail(str(exc))
            return
        self._heard = time.monotonic()  # what came meanwhile is still to be read
        if session is not None and session.done is not None:
            self._answers.say(session.done)
            self._log.info("session_ended", mode=str(session.mode), result=str(session.done.result))
            self._end(Over(installed=session.installed))

    def _fail(self, reason: str) -> None:
        session = self._session
        if session is None:
            return
        reason = as_sentence(reason)
        self._log.warning("session_failed", reason=reason)
        self._answers.say(Done(Result.FAILED, reason, seconds=session.seconds))
        self._end(Over(installed=False, differs=session.differs))

    def _end(self, over: Over) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        session.close()
        if session.mode is Mode.SYNC:
            self._over.put(over)

    def _tend(self) -> None:
        """Ask for what is missing; give up where the primary has fallen silent."""
        session, now = self._session, time.monotonic()
        if session is None:
            return
        silent_s, limit_s = now - self._heard, self._settings.sessions.silent_s
        if silent_s > (limit_s if session.heard else min(limit_s, _FIRST_WORD_S)):
            self._fail(f"nothing was heard of the session for {silent_s:.0f} s")
        elif session.inlet.missing is not None and now - self._asked_again > _TICK_S:
            self._asked_again = now
            self._answers.tell(Progress(session.phase, session.inlet.received, session.rows, again=session.inlet.missing))
