"""PostgreSQL's waker: told of every commit while somebody waits, of none while nobody does or the relay looks again by itself."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from common import sessions
from common.database import Database
from common.dialects.base import Waker
from common.dialects.postgresql_waker import CHANNEL, WAITING_KEY, NotifyWaker
from common.errors import Unavailable
from common.session import Mode
from common.settings import DatabaseSettings
from common.stop import Stop
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster

SOON_S, LATER_S = 0.005, 0.04  # pauses of single changes, and of a flood of them
WAITS = 10
WAITERS = text(
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'"
    f" AND (classid::bigint << 32) + objid::bigint = {WAITING_KEY}"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def database(new_database: NewDatabase) -> Database:
    return Database(DatabaseSettings(url=SecretStr(new_database("postgresql"))))


@pytest.fixture
def waker(database: Database) -> Iterator[NotifyWaker]:
    with closing(NotifyWaker(database.engine, Stop())) as found:
        assert found.wait(30), "look once when it is known who was open"
        yield found


def tell(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(text(f"NOTIFY {CHANNEL}"))
        connection.commit()


def test_a_request_for_a_session_wakes_who_waits(tmp_path: Path, new_database: NewDatabase) -> None:
    schema = ("CREATE TABLE t (id BIGINT PRIMARY KEY)",)
    made = make_cluster(tmp_path / "c", "postgresql", NO_BROKER, new_database, schema=schema, tables="t\n", nodes=("st1",))
    database = made.primary.database
    with closing(NotifyWaker(database.engine, Stop())) as waker, database.connect() as connection:
        assert waker.wait(30)
        assert not waker.wait(0)
        number = sessions.ask(connection, Mode.VERIFY, timeout_s=60.0, wake=database.dialect.wake)
        assert waker.wait(30)
        sessions.cancel(connection, number)
        assert not waker.wait(0)
    made.primary.close()


def rest(waker: Waker) -> None:
    """As after a flood: it looks by itself, and is told again from the second look on."""
    waker.found(LATER_S)
    assert waker.wait(0), "look once more, without having been told"
    assert waker.wait(0), "look again, told from here on"


def test_a_commit_wakes_who_waits(database: Database, waker: Waker) -> None:
    assert not waker.wait(0)
    teller = threading.Timer(0.1, tell, [database])
    teller.start()
    assert waker.wait(30)
    teller.join()
    assert not waker.wait(0), "one notification wakes once"


def test_single_changes_are_told_between_two_looks(database: Database, waker: Waker) -> None:
    waker.found(SOON_S)
    assert not waker.wait(0)
    waker.found(SOON_S)
    tell(database)
    assert waker.wait(30)


def test_under_a_flood_nobody_is_told_and_nothing_is_missed(database: Database, waker: Waker) -> None:
    """TRAPS 1: what is committed while nobody is told is looked for before anybody waits again."""
    for _ in range(3):
        waker.found(LATER_S)
        waker.found(LATER_S)
        assert not waiters(database)
        assert waker.wait(0), "look once more, without having been told"
        assert not waiters(database), "a flood that goes on costs no one a word"
        tell(database)
        assert waker.wait(0), "look again, told from here on"
        assert len(waiters(database)) == 1
        assert not waker.wait(0), "then wait"
        tell(database)
        assert waker.wait(30), "and be told as before"


def test_a_transaction_that_was_open_before_anybody_waited_is_not_missed(database: Database, waker: Waker) -> None:
    """TRAPS 1: its trigger found that nobody waits, and so it tells nobody when it commits."""
    with database.connect() as writer, database.connect() as other:
        for connection in (writer, other):
            connection.execute(text("SELECT pg_current_xact_id()"))
        rest(waker)
        assert waker.wait(30), "look once when their number is known"
        assert not waker.wait(0.3), "they are still open"
        writer.commit()
        assert waker.wait(30), "one has ended"
        assert not waker.wait(0.3), "the other is still open"
        other.rollback()
        assert waker.wait(30), "so has the other"
    begun = time.monotonic()
    assert not waker.wait(0.3)
    assert time.monotonic() - begun > 0.29, "there is nobody left to wait for"


def test_a_word_that_comes_while_older_transactions_are_counted_is_heard(database: Database, waker: NotifyWaker) -> None:
    """The driver takes it with the answer, and libpq then knows of none."""
    with database.connect() as writer:
        writer.execute(text("SELECT pg_current_xact_id()"))
        rest(waker)
        assert waker.wait(30), "look once when its number is known"
        for _ in range(20):
            assert not waker._ended()
            tell(database)
            assert waker._ended()
        tell(database)
        assert waker.wait(30)


def test_where_another_program_holds_the_lock_the_outbox_is_looked_at_again_and_again(
    database: Database, waker: Waker
) -> None:
    """It then seems to every writer that nobody waits."""
    with database.connect() as other:
        waker.found(LATER_S)
        assert other.execute(text(f"SELECT pg_try_advisory_lock_shared({WAITING_KEY})")).scalar_one()
        assert waker.wait(0)
        assert all(waker.wait(30) for _ in range(5))
        older = other.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")).scalar_one()
        assert all(waker.wait(30) for _ in range(WAITS))
        newer = other.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")).scalar_one()
        assert newer - older < WAITS / 2, "none uses up a transaction's number (the server's own work may, now and then)"
        other.execute(text(f"SELECT pg_advisory_unlock_shared({WAITING_KEY})"))
        other.rollback()
    assert waker.wait(30)
    assert len(waiters(database)) == 1
    assert waker.wait(30), "look once when it is known who was open"
    assert not waker.wait(0.3)


@pytest.mark.parametrize("doing", ["waiting", "resting", "resuming"])
def test_a_listener_that_is_cut_off_says_so(database: Database, waker: Waker, doing: str) -> None:
    with database.connect() as connection:
        (pid,) = waiters(database)
        if doing == "resuming":
            waker.found(LATER_S)
            assert waker.wait(0)
        connection.execute(text(f"SELECT pg_terminate_backend({pid})"))
    with pytest.raises(Unavailable, match="listens for changes was lost"):
        waker.found(LATER_S) if doing == "resting" else waker.wait(30)


def test_triggers_tell_only_while_somebody_waits(tmp_path: Path, new_database: NewDatabase) -> None:
    """Transactions that NOTIFY commit one after the other; without a service, or under a flood, there is nobody to tell."""
    schema = ("CREATE TABLE t (id int PRIMARY KEY, v text)",)
    made = make_cluster(tmp_path / "c", "postgresql", NO_BROKER, new_database, schema=schema, tables="t\n", nodes=("st1",))
    with closing(made.primary) as node:
        changes = (
            "INSERT INTO t VALUES (1, 'a')",
            "UPDATE t SET id = 2",
            "UPDATE t SET v = 'b'",
            "DELETE FROM t",
            "TRUNCATE t",
        )
        for change in changes:
            assert heard(node, change) == 0, change
        with closing(node.database.dialect.waker(node.database.engine, Stop(), (0.001, 0.1))) as waker:
            for change in changes:
                assert heard(node, change) == 1, change
            waker.found(LATER_S)
            assert heard(node, "INSERT INTO t SELECT g, 'many' FROM generate_series(1, 100) g") == 0
            assert waker.wait(0), "look once more"
            assert waker.wait(0), "look again, told from here on"
            assert heard(node, "UPDATE t SET v = 'too'") == 1
            assert heard(node, "UPDATE t SET v = v") == 0, "nothing changed"
        assert heard(node, "DELETE FROM t") == 0
        assert len(node.rows("SELECT * FROM stsync_outbox")) == 2 * len(changes) + 3


def heard(node: Node, change: str) -> int:
    """How often the transaction of this change notified, as a listener of the same database hears it."""
    with closing(node.engine.raw_connection()) as pooled:
        listener: Any = pooled.driver_connection
        listener.autocommit = True
        listener.execute(f"LISTEN {CHANNEL}")
        node.execute(change)
        node.execute(f"NOTIFY {CHANNEL}, 'after it'")
        told = []
        for notification in listener.notifies(timeout=30):
            told.append(notification.payload)
            if told[-1]:
                break
        listener.execute(f"UNLISTEN {CHANNEL}")
    assert told[-1:] == ["after it"]
    return len(told) - 1


def waiters(database: Database) -> list[int]:
    with database.connect() as connection:
        return list(connection.execute(WAITERS).scalars())
