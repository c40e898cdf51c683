"""The primary's coordinator: serves requests for sessions one after the other, and tells how far they are (DESIGN §8, §9)."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.engine import Connection

from common import nodestate, sessions
from common.bookkeeping import reports
from common.broker import PublishLink
from common.changes import Position
from common.database import Database
from common.errors import NotApplicable, Refused, Unavailable
from common.live_lists import LiveLists
from common.nodestate import NodeState, State
from common.session import Done, Mode, Phase, Result, new_id
from common.sessions import Request
from common.settings import Settings
from common.stop import Bell, Stop
from common.topology import Topology
from common.wire import Writer
from publisher import healing
from publisher.healing import Known
from publisher.leading import Heard, Leader, SessionEndedError
from publisher.members import Member, active
from publisher.outlet import Outlet, Sent
from publisher.relay import Drained, Relay
from publisher.sender import Posted, Sender

_IDLE_S = _LOOK_S = 0.2
_WOKEN_IDLE_S = 1.0  # where requests wake who serves them
_PULSE_S = 1.0
_HEAL_S = 1.0
_DROPPED_S = 4.0
_SAVE_S = 0.2
_ATTEMPTS = 4
_ATTEMPT_PAUSE_S = 0.5


class Synchronization:
    """One thread runs `loop`; answers come from the control's, confirms from the link's."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        topology: Topology,
        *,
        writer: Writer,
        link: PublishLink,
        relay: Relay,
        sender: Sender,
        lists: LiveLists,
        drained: Callable[[Drained], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._topology = topology
        self._writer = writer
        self._link = link
        self._relay = relay
        self._sender = sender
        self._lists = lists
        self._drained = drained
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._outlet: Outlet | None = None
        self._bell = Bell()
        self._began = time.monotonic()
        self._log = structlog.get_logger("session")

    def answered(self, heard: Heard) -> None:
        """A node answered."""
        self._heard.put(heard)

    def confirmed(self, sent: Sent) -> None:
        """The broker has a message of a session."""
        if (outlet := self._outlet) is not None:
            outlet.confirmed(sent)

    def reset(self) -> None:
        """The link was lost."""
        if (outlet := self._outlet) is not None:
            outlet.reset()

    def look(self) -> None:
        """There may be a request; else it is found by itself, a moment later."""
        self._bell.ring()

    def loop(self, stop: Stop) -> None:
        """Serve requests until stop; raises Unavailable when the database is away."""
        with self._database.connect() as connection, self._database.connect(read_only=True) as reading:
            self._give_up_former(connection)
            healed = time.monotonic()
            dialect = self._database.dialect
            idle_s = _WOKEN_IDLE_S if dialect.wake else _IDLE_S
            while not self._bell.wait(stop, idle_s):
                some = sessions.is_open(reading, looks_freely=dialect.looks_freely)
                request = sessions.newest_open(reading) if some else None
                reading.rollback()
                if request is not None:
                    self._serve(connection, reading, request, stop)
                elif time.monotonic() - healed > _HEAL_S:
                    healed = time.monotonic()
                    self._heal(connection, reading)

    def _heal(self, connection: Connection, reading: Connection) -> None:
        """Ask for what nodes need, or what it is time for."""
        now = nodestate.now_ms()
        known = {
            row.name: Known(
                State(row.state),
                row.sequence,
                bool(row.equal_once),
                (now - row.heard_ms) / 1000,
                proven=bool(row.proven),
                quarantined=row.quarantined,
                went_back=bool(row.went_back),
            )
            for row in reading.execute(select(reports))
            if row.name in self._settings.cluster.names and row.name != self._settings.node.name
        }
        history = sessions.latest(reading)
        state = nodestate.read(reading)
        ahead = healing.ahead(known, history, head=self._relay.position.sequence, now_ms=now)
        found = healing.wanted(
            known,
            history,
            head=self._relay.position.sequence,
            offline_after_s=self._settings.intervals.offline_after_s,
            settings=self._settings.sessions,
            outdated=self._outdated(connection, state, ahead),
            doubted_ms=_doubted(state),
            began_ms=now - int((time.monotonic() - self._began) * 1000),
            now_ms=now,
        )
        reading.rollback()
        if found is None:
            return
        with suppress(Refused):  # somebody else was quicker
            sessions.ask(
                connection,
                found.mode,
                cause=found.cause,
                nodes=found.nodes or None,
                timeout_s=self._settings.sessions.timeout_s,
            )
            self._bell.ring()

    def _outdated(self, connection: Connection, state: NodeState | None, ahead: Sequence[str]) -> bool:
        """Whether a node has ever been heard that has more of the log than this primary, since a person has last synchronized all."""
        if state is None or state.reason is not None or not ahead:
            return state is not None and state.reason is not None
        reason = (
            f"{', '.join(ahead)} had more of the log than this primary, whose database may be an older one (restored from a backup?); "
            "nothing is synchronized by itself until somebody has run `stsync sync` here, or has made another node the primary"
        )
        nodestate.save(connection, reason=reason)
        connection.commit()
        self._log.error("primary_outdated", reason=reason)
        return True

    def _give_up_former(self, connection: Connection) -> None:
        """What an earlier process led ended with it; what was only asked for waits still."""
        while (former := sessions.newest_open(connection)) is not None and former.phase is not Phase.REQUESTED:
            reason = "this node's service ended while the session ran"
            sessions.save(connection, former.id, phase=Phase.FAILED, reason=reason, ended_ms=nodestate.now_ms())
        connection.rollback()

    def _serve(self, connection: Connection, reading: Connection, request: Request, stop: Stop) -> None:
        keeper = _Keeper(connection, reading, self._settings, request, stop)
        names = request.nodes or [name for name in self._settings.cluster.names if name != self._settings.node.name]
        now = time.monotonic()
        keeper.members = {name: Member(name, now) for name in names}
        keeper.start()
        doubted_ms = _doubted(nodestate.read(reading))
        reading.rollback()
        self._log.info("session_began", mode=str(request.mode), cause=request.cause, nodes=list(names))
        phase, reason = Phase.RESUMED, None
        try:
            session = bytes.fromhex(request.session)
            for _ in range(_ATTEMPTS):
                if not self._attempt(keeper, request, session):
                    break
                session = new_id()
                keeper.pause(_ATTEMPT_PAUSE_S)
        except SessionEndedError as exc:
            phase, reason = Phase.FAILED, str(exc)
        except OSError as exc:
            phase, reason = Phase.FAILED, f"this node's disk: {exc.strerror}"
        except NotApplicable as exc:
            phase, reason = Phase.FAILED, str(exc)
        except Unavailable as exc:
            phase, reason = Phase.FAILED, str(exc)
            keeper.end(reason)
            connection.invalidate()
            with self._database.connect() as fresh:
                keeper.finish(fresh, phase, reason)
            raise
        keeper.end(reason or keeper.passed)
        if request.mode is Mode.SYNC and request.cause == sessions.OPERATOR and phase is Phase.RESUMED:
            nodestate.save(connection, reason=None)  # a person has said which side is right; committed with the end
        if doubted_ms is not None and phase is Phase.RESUMED and keeper.all_equal:
            nodestate.settle(connection, doubted_ms)
        keeper.remember_installed(connection)
        keeper.finish(connection, phase, reason)
        results = {name: str(member.done.result) for name, member in keeper.members.items() if member.done}
        self._log.info("session_ended", mode=str(request.mode), phase=str(phase), reason=reason, results=results)

    def _attempt(self, keeper: "_Keeper", request: Request, session: bytes) -> bool:
        """Lead a session for those who have not had one; True where another attempt may serve some of them."""
        while keeper.silent() and time.monotonic() - self._began < self._settings.intervals.offline_after_s:
            keeper.pause(_LOOK_S)  # this service has just started, and so may theirs have
        while not self._relay.has_begun:
            keeper.pause(_LOOK_S)
        keeper.leave_out_silent()
        some = active(keeper.members.values())
        if not some:
            return False
        with self._database.connect(read_only=True) as reading:
            number = self._number(keeper.connection)
            leader = Leader(
                self._database,
                request,
                some,
                session=session,
                listed=self._lists.as_they_are().tables,
                number=number,
                chunk_bytes=self._settings.sessions.chunk_bytes,
                heard=self._heard,
                tick=keeper.tick,
            )
            for member in some:
                member.session_number = number
            keeper.leader = leader
            leader.look(reading)
            reading.rollback()
            self._lead(reading, leader, keeper, request)
        passed = [member for member in some if member.ready is not None and member.ready.again]
        for member in passed:
            keeper.again(member)
        return bool(passed)

    def _number(self, connection: Connection) -> int:
        (number,) = nodestate.reserve_numbers(connection)
        connection.commit()
        return number

    def _lead(self, snapshot: Connection, leader: Leader, keeper: "_Keeper", request: Request) -> None:
        alone = request.nodes[0] if request.nodes is not None and len(request.nodes) == 1 else None
        outlet = Outlet(
            self._link,
            self._topology,
            self._writer,
            session=leader.session,
            epoch=self._relay.position.epoch,
            node=alone,
            lifetime_s=request.timeout_s,
            wait=leader.wait,
        )
        outlet.pace(leader.slowest)
        first: list[bytes] = []

        def at(drained: Drained | None, position: Position) -> None:
            if drained is not None:
                self._drained(drained)
            first.append(outlet.compose(leader.begin(position)))
            self._sender.after(position.sequence, self._to(leader.members, request, first[0]))

        def begin_again(names: Sequence[str]) -> None:
            if leader.position is not None and not self._sender.holds_back:
                posted = [Posted(self._topology.direct_exchange, name, first[0]) for name in names]
                self._sender.after(leader.position.sequence, posted)

        self._outlet = outlet
        over = threading.Event()
        pulse = threading.Thread(target=_pulse, args=(outlet, leader, over), name="stsync-session-pulse", daemon=True)
        try:
            keeper.position = self._relay.cut(snapshot, at)
            pulse.start()
            leader.lead(snapshot, outlet, begin_again)
        finally:
            over.set()
            self._sender.forget_between()
            self._outlet = None
            if pulse.ident is not None:
                pulse.join()
            outlet.close()

    def _to(self, members: "dict[str, Member]", request: Request, message: bytes) -> list[Posted]:
        if request.nodes is None and len(members) == len(self._settings.cluster.names) - 1:
            return [Posted(self._topology.events_exchange, "", message)]
        return [Posted(self._topology.direct_exchange, name, message) for name in members]


def _doubted(state: NodeState | None) -> int | None:
    """When something put in doubt that this node's changes have reached the others: `install` did."""
    return None if state is None or state.doubt is None else state.installed_ms


def _pulse(outlet: Outlet, leader: Leader, over: threading.Event) -> None:
    while not over.wait(_PULSE_S):
        outlet.alive(leader.heard_of())


class _Keeper:
    """Keeps the request's row up to date, and says when the session has to end."""

    def __init__(
        self, connection: Connection, reading: Connection, settings: Settings, request: Request, stop: Stop
    ) -> None:
        self.connection = connection
        self._reading = reading  # on SQLite, whoever may write keeps all others from it
        self._settings = settings
        self._request = request
        self._stop = stop
        self._began = time.monotonic()
        self._saved_at = self._waited = 0.0
        self._saved: tuple[Phase, dict[str, Any]] | None = None
        self.members: dict[str, Member] = {}
        self.position: Position | None = None
        self.passed = "it did not take part"
        self.leader: Leader | None = None

    def tick(self, phase: Phase) -> None:
        """See Leader."""
        now = time.monotonic()
        if self._stop.is_set():
            raise SessionEndedError("this node's service is being stopped")
        if now - self._began > self._request.timeout_s:
            raise SessionEndedError(f"it took longer than {self._request.timeout_s:.0f} s")
        if now - self._saved_at < _SAVE_S:
            return
        self._saved_at = now
        self._save(phase)
        found = sessions.read(self._reading, self._request.id)
        self._reading.rollback()
        if found is None or found.cancelled:
            raise SessionEndedError("it was cancelled")
        self._leave_out_gone(now)

    @property
    def all_equal(self) -> bool:
        """Whether every secondary is equal now, or was at the session's position."""
        alike = self._request.mode is Mode.SYNC
        found = [member.done for member in self.members.values()]
        equal = all(done is not None and done.result is Result.DONE and (alike or not done.tables) for done in found)
        return equal and self._request.nodes is None and self._request.mode is not Mode.REHEARSE

    def again(self, member: Member) -> None:
        """The position did not suit it; another may."""
        if member.done is not None and member.done.reason:
            self.passed = member.done.reason
        self.members[member.name] = Member(member.name, member.began)

    def pause(self, seconds: float) -> None:
        """Wait for a while; raises as `tick` does."""
        self._stop.wait(seconds)
        self._waited = time.monotonic()  # nobody has been asked yet
        self.tick(Phase.PAUSING)

    def leave_out_silent(self) -> None:
        """Those who have not been heard lately take no part."""
        for name, silent_s in self.silent().items():
            since = "so far" if silent_s is None else f"for {silent_s:.0f} s"
            self.members[name].end(Done(Result.UNREACHABLE, f"nothing was heard from it {since}"))

    def silent(self) -> dict[str, float | None]:
        """Those who have not been heard lately, and for how long."""
        limit_s = self._settings.intervals.offline_after_s
        return {name: since for name, since in self._silences().items() if since is None or since > limit_s}

    def _leave_out_gone(self, now: float) -> None:
        """Those who fell silent during the session."""
        # With a third of its time gone there is enough left for those who answer.
        least_s = self._settings.intervals.offline_after_s
        limit_s = min(self._settings.sessions.silent_s, max(least_s, self._request.timeout_s / 3))
        for member in active(self.members.values()):
            quiet_s = now - max(member.at, member.began, self._waited)
            if member.ready is not None and quiet_s > _DROPPED_S and self._goes_on(member.name, quiet_s):
                member.end(Done(Result.FAILED, "its service was started again meanwhile, or has given the session up"))
            if quiet_s <= limit_s:
                continue
            silent_s = self._silences()[member.name]
            if member.ready is None and silent_s is not None and silent_s < limit_s:
                if self._others_wait(member):
                    busy = "it is heard, but was not ready within {:.0f} s while others waited: it is busy, or its database is away"
                    member.end(Done(Result.UNREACHABLE, busy.format(limit_s)))
                continue  # it is busy with what stands before in its queue
            member.end(
                Done(Result.UNREACHABLE, f"nothing was heard from it for {limit_s:.0f} s, in the phase {member.phase}")
            )

    def _others_wait(self, late: Member) -> bool:
        """Whether nodes are paused meanwhile, which is not to last."""
        return any(member is not late and member.ready is not None for member in active(self.members.values()))

    def _goes_on(self, name: str, quiet_s: float) -> bool:
        """Whether a node that says nothing in a session that had paused it reports meanwhile that it is not paused."""
        row = self._reading.execute(select(reports.c.state, reports.c.heard_ms).where(reports.c.name == name)).first()
        self._reading.rollback()
        newer = row is not None and nodestate.now_ms() - row.heard_ms < 1000 * (quiet_s - 1.0)
        pauses = self._request.mode is Mode.SYNC
        return pauses and row is not None and newer and row.state not in (State.PAUSED, State.SYNCHRONIZING)

    def _silences(self) -> dict[str, float | None]:
        now = nodestate.now_ms()
        heard = {row.name: row.heard_ms for row in self._reading.execute(select(reports.c.name, reports.c.heard_ms))}
        self._reading.rollback()
        return {name: (now - heard[name]) / 1000 if name in heard else None for name in self.members}

    def end(self, reason: str) -> None:
        """Nothing more comes from anybody."""
        for member in active(self.members.values()):
            member.end(Done(Result.FAILED, reason))

    def remember_installed(self, connection: Connection) -> None:
        """Who has it, and does not say so any more, has had its database put back to before; the caller commits."""
        for member in self.members.values():
            if self._request.mode is Mode.SYNC and member.done is not None and member.done.result is Result.DONE:
                older = (reports.c.name == member.name, reports.c.installed_session < member.session_number)
                connection.execute(reports.update().where(*older).values(installed_session=member.session_number))

    def start(self) -> None:
        """Write down whom it is for: whatever becomes of this process, they have then missed it."""
        self._save(Phase.PAUSING, began_ms=nodestate.now_ms())

    def finish(self, connection: Connection, phase: Phase, reason: str | None) -> None:
        """Write down how it ended."""
        self.connection = connection
        self._save(phase, reason=reason, ended_ms=nodestate.now_ms())

    def _save(self, phase: Phase, **values: Any) -> None:
        admin = {node.name: node.admin_url for node in self._settings.cluster.nodes}
        progress: dict[str, Any] = {
            "nodes": [member.document(self._request.mode, admin.get(name, "")) for name, member in self.members.items()]
        }
        if self.leader is not None:
            progress["rows"] = {"looked_at": self.leader.looked_at, "of": self.leader.rows}
        if not values and (phase, progress) == self._saved:
            return
        self._saved = (phase, progress)
        at = {} if self.position is None else {"epoch": self.position.epoch, "sequence": self.position.sequence}
        sessions.save(self.connection, self._request.id, phase=phase, progress=progress, **at, **values)
