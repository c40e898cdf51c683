"""Whom the primary waits for in a session, when it ends one, and what it writes down of it, on a real database (DESIGN §8)."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy.engine import Connection

from common import nodestate, session_history, sessions
from common.bookkeeping import reports
from common.broker import Delivery
from common.changes import Position
from common.errors import Refused
from common.nodestate import State
from common.session import Done, Mode, Phase, Progress, Ready, Result, TableCompared
from common.sessions import Request
from common.stop import Stop
from common.wire import MessageKind, encode_body
from publisher import synchronization
from publisher.control import Control
from publisher.leading import Heard, SessionEndedError
from publisher.members import Member
from publisher.relay import Relay
from publisher.synchronization import Synchronization, _Keeper
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, QUIET, Node, make_cluster, wait_for
from tests.pipeline import _built

SILENT_S = 20.0
WELL = Done(Result.DONE, None)


@pytest.fixture
def primary(tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """One whose service does not run."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    settings = QUIET + f"silent_s = {SILENT_S}\n[intervals]\noffline_after_s = 1.0\n"
    made = make_cluster(tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n", settings=settings)
    yield made.primary
    for one in made.nodes.values():
        one.close()


@pytest.fixture
def connection(primary: Node) -> Iterator[Connection]:
    with primary.database.connect() as found:
        yield found


class Session:
    """A session that was asked for, and its keeper; what nodes report is put down here."""

    def __init__(self, primary: Node, connection: Connection, mode: Mode = Mode.SYNC, **asked: Any) -> None:
        self.connection = connection
        self.stop = Stop()
        self.number = sessions.ask(connection, mode, **({"timeout_s": 60.0} | asked))
        request = sessions.read(connection, self.number)
        connection.rollback()
        assert request is not None
        self.keeper = _Keeper(connection, connection, primary.settings, request, self.stop)
        self.keeper.members = {name: Member(name, time.monotonic()) for name in ("st2", "st3")}

    def reported(self, name: str, state: State, ago_s: float) -> None:
        self.connection.execute(
            reports.insert().values(
                name=name,
                number=1,
                state=state,
                epoch=1,
                sequence=1,
                hash=b"",
                quarantined=0,
                refused_json="{}",
                heard_ms=nodestate.now_ms() - int(ago_s * 1000),
            )
        )
        self.connection.commit()

    def answered(self, name: str, ago_s: float, *, ready: bool = True) -> Member:
        member = self.keeper.members[name]
        if ready:
            member.take(1, Ready(1))
        member.began = member.at = time.monotonic() - ago_s
        return member

    def result(self, name: str) -> tuple[str, str] | None:
        done = self.keeper.members[name].done
        return None if done is None else (str(done.result), done.reason or "")

    def tick(self) -> None:
        self.keeper.tick(Phase.CHUNKS)


@pytest.fixture
def session(primary: Node, connection: Connection) -> Session:
    return Session(primary, connection)


def test_who_asks_while_another_does_waits_and_is_refused(
    tmp_path: Path, new_database: NewDatabase, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2")
    )
    database = cluster.primary.database
    refused: list[str] = []

    def ask() -> None:
        with database.connect() as connection:
            try:
                sessions.ask(connection, Mode.VERIFY, timeout_s=60.0)
            except Refused as exc:
                refused.append(str(exc))

    other = threading.Thread(target=ask)
    look = sessions.newest_open

    def look_first(connection: Connection) -> Request | None:
        found = look(connection)
        if other.ident is None:
            other.start()  # after the first has looked, and before it has written
            other.join(0.5)
        return found

    monkeypatch.setattr(sessions, "newest_open", look_first)
    with database.connect() as connection:
        number = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
    other.join()
    assert cluster.primary.rows("SELECT id FROM stsync_sessions") == [(number,)]
    assert "another session runs: a full synchronization" in refused[0]
    for node in cluster.nodes.values():
        node.close()


def test_who_falls_silent_is_not_waited_for(session: Session) -> None:
    session.answered("st2", SILENT_S + 1)
    session.answered("st3", SILENT_S - 1)
    session.tick()
    found = session.result("st2")
    assert found is not None
    assert found[0] == "unreachable"
    assert "nothing was heard from it for 20 s, in the phase pausing" in found[1]
    assert session.result("st3") is None


def test_who_falls_silent_does_not_use_up_the_time_of_the_others(primary: Node, connection: Connection) -> None:
    """DESIGN §8: it is left out, and not all of them fail."""
    session = Session(primary, connection, timeout_s=12.0)
    session.answered("st2", 5)
    session.answered("st3", 0.1)
    session.tick()
    assert session.result("st3") is None
    assert session.result("st2") == ("unreachable", "nothing was heard from it for 4 s, in the phase pausing")


def test_who_has_only_just_been_asked_is_waited_for(primary: Node, connection: Connection) -> None:
    """However long the others were waited for before."""
    session = Session(primary, connection, timeout_s=12.0)
    session.answered("st2", 5, ready=False)
    session.answered("st3", 5, ready=False)
    session.keeper.pause(0.01)
    session.answered("st3", 0.1)
    session.reported("st2", State.IN_SYNC, 0.1)
    session.tick()
    assert (session.result("st2"), session.result("st3")) == (None, None)


def test_who_was_never_heard_is_not_waited_for(session: Session) -> None:
    session.answered("st2", SILENT_S + 1, ready=False)
    session.tick()
    assert (session.result("st2") or ("",))[0] == "unreachable"


def test_who_is_busy_is_waited_for_as_long_as_nobody_else_has_to_wait(session: Session) -> None:
    session.answered("st2", SILENT_S + 1, ready=False)
    session.reported("st2", State.CATCHING_UP, 0.5)
    session.answered("st3", 0.1, ready=False)
    session.tick()
    assert session.result("st2") is None
    session.answered("st3", 0.1)
    session.keeper._saved_at = 0.0
    session.tick()
    found = session.result("st2")
    assert found is not None
    assert found[0] == "unreachable"
    assert "it is busy" in found[1]
    assert session.result("st3") is None


def test_who_goes_on_with_the_log_meanwhile_has_given_the_session_up(session: Session) -> None:
    session.answered("st2", 6.0)
    session.reported("st2", State.CATCHING_UP, 1.0)
    session.answered("st3", 6.0)
    session.reported("st3", State.PAUSED, 1.0)
    session.tick()
    assert session.result("st2") == ("failed", "its service was started again meanwhile, or has given the session up")
    assert session.result("st3") is None


def test_who_said_that_it_goes_on_before_it_paused_has_not(session: Session) -> None:
    session.answered("st2", 6.0)
    session.reported("st2", State.CATCHING_UP, 7.0)
    session.tick()
    assert session.result("st2") is None


def test_nobody_pauses_to_be_compared(primary: Node, connection: Connection) -> None:
    session = Session(primary, connection, Mode.VERIFY)
    session.answered("st2", 6.0)
    session.reported("st2", State.IN_SYNC, 1.0)
    session.tick()
    assert session.result("st2") is None


def test_who_has_not_been_heard_lately_is_left_out_from_the_beginning(session: Session) -> None:
    session.reported("st3", State.IN_SYNC, 0.0)
    session.keeper.leave_out_silent()
    assert session.result("st2") == ("unreachable", "nothing was heard from it so far")
    assert session.result("st3") is None


def test_it_ends_when_somebody_or_its_time_ends_it(primary: Node, connection: Connection, session: Session) -> None:
    sessions.cancel(connection, session.number)
    with pytest.raises(SessionEndedError, match="it was cancelled"):
        session.tick()
    sessions.save(connection, session.number, phase=Phase.FAILED)
    late = Session(primary, connection, timeout_s=5.0)
    late.keeper._began -= 6.0
    with pytest.raises(SessionEndedError, match="longer than 5 s"):
        late.tick()
    late.stop.set()
    with pytest.raises(SessionEndedError, match="is being stopped"):
        late.tick()


def test_whom_it_is_for_is_written_down_before_it_begins(session: Session) -> None:
    """So that whoever it was for has missed it if the primary dies."""
    session.keeper.start()
    sessions.save(session.connection, session.number, phase=Phase.FAILED, reason="its process died")
    history = sessions.latest(session.connection)
    for name in ("st2", "st3"):
        assert "its process died" in (session_history.missed(name, history) or "")


def test_how_it_ended_is_written_down_of_each(session: Session) -> None:
    session.keeper.start()
    session.keeper.position = Position(1, 5)
    session.answered("st2", 0.1).take(2, WELL)
    session.keeper.end("the primary's reason")
    session.keeper.finish(session.connection, Phase.RESUMED, None)
    found = sessions.read(session.connection, session.number)
    assert found is not None
    assert (found.phase, found.position) == (Phase.RESUMED, (1, 5))
    assert found.ended_ms is not None
    assert [(one["name"], one["result"], one["reason"]) for one in found.progress["nodes"]] == [
        ("st2", "done", None),
        ("st3", "failed", "the primary's reason"),
    ]


DIFFERS = Done(Result.DONE, None, (TableCompared("item", missing=1),))
FAILED = Done(Result.FAILED, "why")


@pytest.mark.parametrize(
    ("mode", "nodes", "others", "equal"),
    [
        (Mode.SYNC, None, WELL, True),
        (Mode.SYNC, None, DIFFERS, True),  # what was written there
        (Mode.VERIFY, None, WELL, True),
        (Mode.VERIFY, None, DIFFERS, False),
        (Mode.VERIFY, None, FAILED, False),
        (Mode.SYNC, None, Done(Result.UNREACHABLE, "why"), False),
        (Mode.SYNC, None, Done(Result.REFUSED, "why"), False),
        (Mode.SYNC, None, None, False),
        (Mode.SYNC, ("st2", "st3"), WELL, False),  # not all were asked
        (Mode.REHEARSE, None, WELL, False),
    ],
)
def test_all_are_equal_only_where_each_took_part_and_came_to_be(
    primary: Node, connection: Connection, mode: Mode, nodes: tuple[str, ...] | None, others: Done | None, *, equal: bool
) -> None:
    session = Session(primary, connection, mode, nodes=nodes)
    session.keeper.members["st2"].end(WELL)
    if others is not None:
        session.keeper.members["st3"].end(others)
    assert session.keeper.all_equal is equal


def test_whom_another_position_may_suit_is_asked_again(session: Session) -> None:
    member = session.keeper.members["st2"]
    member.take(1, Ready(1, "it stands elsewhere", again=True))
    member.take(0, Progress(Phase.FAILED, 1, 0))
    session.keeper.again(member)
    assert session.keeper.members["st2"].takes_part
    assert session.keeper.passed == "it stands elsewhere"


@contextmanager
def leading(primary: Node) -> Iterator[Synchronization]:
    """What serves requests runs in this process; no node has ever been heard, so that nothing is said to any."""
    parts, lists = _built(primary)
    relay = Relay(parts.database, parts.settings.relay, parts.writer, lambda: lists.present, parts.state.position)
    assert relay.drain() is None
    nobody, stop = cast(Any, None), Stop()
    serving = Synchronization(
        parts.database,
        parts.settings,
        parts.topology,
        writer=parts.writer,
        link=nobody,
        relay=relay,
        sender=nobody,
        lists=lists,
        drained=nobody,
    )
    thread = threading.Thread(target=partial(serving.loop, stop))
    thread.start()
    try:
        yield serving
    finally:
        stop.set()
        thread.join()
        relay.close()


def phase_of(primary: Node, number: int) -> str:
    return str(primary.rows("SELECT phase FROM stsync_sessions WHERE id = :id", id=number)[0][0])


@pytest.mark.parametrize(
    ("mode", "cause", "kept"),
    [
        (Mode.SYNC, sessions.OPERATOR, False),
        (Mode.VERIFY, sessions.OPERATOR, True),
        (Mode.REHEARSE, sessions.OPERATOR, True),
        (Mode.SYNC, sessions.REJOIN, True),
        (Mode.SYNC, sessions.FIRST, True),
    ],
)
def test_that_the_primary_is_right_is_said_by_nobody_but_a_person_who_synchronizes(
    primary: Node, connection: Connection, mode: Mode, cause: str, *, kept: bool
) -> None:
    """DOMAIN §7: whether a primary may be the outdated one."""
    nodestate.save(connection, reason="a node had more of the log")
    number = sessions.ask(connection, mode, cause=cause, timeout_s=60.0)
    with leading(primary):
        wait_for(lambda: phase_of(primary, number) == "resumed", "the end")
    assert bool(primary.rows("SELECT reason FROM stsync_node")[0][0]) is kept


def test_a_primary_s_doubt_stays_where_a_node_did_not_take_part(primary: Node, connection: Connection) -> None:
    nodestate.save(connection, doubt="it was upgraded")
    number = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
    with leading(primary):
        wait_for(lambda: phase_of(primary, number) == "resumed", "the end")
    assert primary.rows("SELECT doubt FROM stsync_node") == [("it was upgraded",)]


@pytest.mark.parametrize("state", [State.IN_SYNC, State.NEEDS_FULL_SYNC])
def test_who_was_synchronized_often_is_an_alarm_and_is_said_to_need_one_where_it_does(
    primary: Node, connection: Connection, state: State
) -> None:
    """TRAPS 12: no loop of full synchronizations goes on unseen."""
    for _ in range(4):
        number = sessions.ask(connection, Mode.SYNC, cause=sessions.REJOIN, nodes=["st2"], timeout_s=60.0)
        done: dict[str, Any] = {"nodes": [{"name": "st2", "result": "done", "reason": None, "tables": []}]}
        sessions.save(connection, number, phase=Phase.RESUMED, ended_ms=nodestate.now_ms(), progress=done)
    Session(primary, connection).reported("st2", state, 0.1)
    sessions.save(connection, number + 1, phase=Phase.FAILED, cancelled=1, ended_ms=nodestate.now_ms())
    warnings = primary.status()["warnings"]
    (alarm,) = [one for one in warnings if "4 full synchronizations of its own" in one]
    assert ("still needs one" in alarm) == (state is State.NEEDS_FULL_SYNC)


def test_a_request_is_served_when_it_is_told_of_and_else_a_moment_later(
    primary: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronization, "_IDLE_S", 3600.0)
    with leading(primary) as serving:
        number = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
        serving.look()
        wait_for(lambda: phase_of(primary, number) == "resumed", "the end")
    monkeypatch.undo()
    with leading(primary):
        number = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
        wait_for(lambda: phase_of(primary, number) == "resumed", "the end")


def test_what_a_process_that_died_had_begun_is_given_up_and_what_was_asked_for_is_served(
    primary: Node, connection: Connection
) -> None:
    begun = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
    sessions.save(connection, begun, phase=Phase.CHUNKS, began_ms=nodestate.now_ms())
    with leading(primary):
        wait_for(lambda: phase_of(primary, begun) == "failed", "the end of the one that had begun")
    assert primary.rows("SELECT reason, ended_ms IS NULL FROM stsync_sessions") == [
        ("this node's service ended while the session ran", 0)
    ]
    asked = sessions.ask(connection, Mode.SYNC, timeout_s=60.0)
    with leading(primary):
        wait_for(lambda: phase_of(primary, asked) == "resumed", "the one that was asked for")


def test_an_answer_of_long_ago_or_of_no_secondary_does_not_count(primary: Node, connection: Connection) -> None:
    """TRAPS 34."""
    parts, _ = _built(primary)
    heard: list[Heard] = []
    control = Control(
        parts.database,
        parts.settings,
        parts.topology,
        writer=parts.writer,
        reader=parts.reader,
        link=cast(Any, None),
        head=lambda: parts.state.position,
        on_numbers=lambda _first: None,
        on_answer=heard.append,
    )
    control.start(connection)
    beside = replace(primary, name="st2", home=primary.home.parent / "st2")
    writer = _built(beside)[0].writer
    session = b"\1" * 16

    def arrive(kind: MessageKind, ago_s: float) -> None:
        writer._clock = lambda: time.time() - ago_s
        body = encode_body(Ready(7))
        message = writer.write(kind, body, epoch=1, sequence=1, previous=session, audience="st1", expires_in_s=60.0)
        control.take(connection, [Delivery(message, 1, "st2", redelivered=False, generation=1)])

    arrive(MessageKind.ANSWER, 4000.0)
    arrive(MessageKind.SESSION, 0.0)
    assert heard == []
    assert set(primary.rows("SELECT kind FROM stsync_refusals")) == {("expired",), ("sender",)}
    arrive(MessageKind.ANSWER, 0.0)
    assert heard == [Heard("st2", session, 1, Ready(7))]
