"""Rows of tables that are empty here are put in while the others are still on their way, and nobody sees any before the end
(TRAPS 7)."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from common.session import Cancel
from consumer import install
from consumer.spool import Spool
from consumer.synchronizer import Over
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, QUIET, Cluster, make_cluster, wait_for
from tests.session_words import AT, ROWS, SCHEMA, Primary, Secondary

# How many rows others have written into the table and not committed; of PostgreSQL whether any.
UNCOMMITTED = {
    "postgresql": "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_database d ON d.oid = l.database"
    " WHERE d.datname = current_database() AND c.relname = 'item' AND l.mode = 'RowExclusiveLock' AND l.granted",
    "mariadb": "SELECT count(*) FROM item",
}
OTHERS = {  # connections to this database but the one that asks
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
}
END = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
THERE = {
    "postgresql": (
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := ''own''; RETURN NEW; END'",
        "CREATE TRIGGER own BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION own()",
    ),
    "mariadb": ("CREATE TRIGGER own BEFORE INSERT ON item FOR EACH ROW SET NEW.note = 'own'",),
}


class Place:
    """A primary, and a secondary of which this is the side of sessions."""

    def __init__(self, cluster: Cluster, kind: str) -> None:
        self.kind = kind
        self.cluster = cluster
        self.primary = Primary(cluster)
        self.st2 = Secondary(cluster)
        # Their number alone may be seen from outside: what is not committed.
        dirty = {"isolation_level": "READ UNCOMMITTED"} if kind == "mariadb" else {}
        self._engine = create_engine(self.st2.node.url, poolclass=NullPool, **dirty)

    def uncommitted(self) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(text(UNCOMMITTED[self.kind])).scalar_one())

    def end_connections(self) -> None:
        self.st2.node.close()
        with self._engine.connect() as connection:
            for one in connection.execute(text(OTHERS[self.kind])).scalars().all():
                connection.execute(text(END[self.kind].format(one)))

    def close(self) -> None:
        self.st2.close()


Made = Callable[[str], Place]


@pytest.fixture
def make(tmp_path: Path, new_database: NewDatabase) -> Iterator[Made]:
    made: list[Place] = []

    def new(kind: str) -> Place:
        cluster = make_cluster(tmp_path / "c", kind, NO_BROKER, new_database, schema=SCHEMA, tables="item\n", settings=QUIET)
        cluster.primary.execute("INSERT INTO item VALUES (1, 'one'), (2, 'two')")
        made.append(Place(cluster, kind))
        return made[0]

    yield new
    for place in made:
        place.close()
        for node in place.cluster.nodes.values():
            node.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the installation waits for the session's end."""
    found, wait = threading.Event(), Spool.wait_for_all

    def wait_and_say_so(spool: Spool) -> None:
        found.set()
        wait(spool)

    monkeypatch.setattr(Spool, "wait_for_all", wait_and_say_so)
    return found


@pytest.fixture(params=["postgresql", "mariadb"])
def place(request: pytest.FixtureRequest, make: Made) -> Place:
    return make(request.param)


def test_the_first_rows_are_written_before_the_last_have_come_and_seen_with_them(place: Place) -> None:
    st2, (manifest, one, other, end) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(manifest, one)
    wait_for(place.uncommitted, "the first row")
    assert (st2.rows(), st2.node.sequence()) == ([], 0)
    st2.hear(other)
    st2.wait_heard(place.primary)
    assert st2.synchronizer.over() is None
    assert (st2.rows(), st2.node.sequence()) == ([], 0)
    st2.hear(end)
    assert st2.over() == Over(installed=True)
    assert (st2.rows(), st2.node.sequence(), place.uncommitted() % len(ROWS)) == (ROWS, AT, 0)


def test_what_was_written_is_taken_back_where_the_session_ends_before(place: Place) -> None:
    st2, (manifest, one, other, end) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(manifest, one)
    wait_for(place.uncommitted, "the first row")
    st2.hear(place.primary.say(Cancel("enough")), other, end)
    assert st2.over() == Over(installed=False, differs=True)
    assert (place.uncommitted(), st2.rows(), st2.node.sequence()) == (0, [], 0)
    again = Primary(place.cluster)
    st2.begin(again)
    st2.hear(*again.all())
    assert st2.over() == Over(installed=True)
    assert st2.rows() == ROWS


def test_the_log_goes_on_only_when_nothing_is_written_any_more(place: Place) -> None:
    """Somebody has written the second row here and not decided yet, for which the installation waits as the session ends."""
    st2, (manifest, one, other, _) = place.st2, place.primary.all()
    with st2.node.engine.connect() as connection:
        connection.execute(text("INSERT INTO item VALUES (2, 'mine')"))
        before = place.uncommitted()
        st2.begin(place.primary)
        st2.hear(manifest, one, other)
        wait_for(lambda: place.uncommitted() > before, "the first row")
        st2.wait_heard(place.primary)
        st2.hear(place.primary.say(Cancel("enough")))
        with pytest.raises(AssertionError, match="not within"):
            wait_for(st2.synchronizer.over, "the end before the writer's", timeout_s=0.5)
        connection.rollback()
    assert st2.over() == Over(installed=False, differs=True)
    assert (place.uncommitted(), st2.rows(), st2.node.sequence()) == (0, [], 0)


def test_it_is_done_anew_where_the_database_was_away_before_all_had_come(place: Place) -> None:
    st2, (manifest, *rest) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(manifest, rest[0])
    wait_for(place.uncommitted, "the first row")
    place.end_connections()
    wait_for(lambda: not place.uncommitted(), "the writer's end")
    st2.hear(*rest[1:])
    assert st2.over() == Over(installed=True)
    assert (st2.rows(), st2.node.sequence()) == (ROWS, AT)


def test_it_is_done_anew_where_the_connection_was_lost_while_it_waited_for_the_end(
    place: Place, waits: threading.Event
) -> None:
    st2, (*most, end) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(*most)
    assert waits.wait(30)
    place.end_connections()
    wait_for(lambda: not place.uncommitted(), "the writer's end")
    st2.hear(end)
    assert st2.over() == Over(installed=True)
    assert (st2.rows(), st2.node.sequence()) == (ROWS, AT)


def test_no_bound_of_the_servers_ends_who_waits_for_rows(place: Place) -> None:
    """Of the transaction that installs."""
    idle = {
        "postgresql": "SELECT current_setting('idle_in_transaction_session_timeout')",
        "mariadb": "SELECT @@SESSION.idle_transaction_timeout + @@SESSION.idle_write_transaction_timeout",
    }
    bound = {
        "postgresql": "SET idle_in_transaction_session_timeout = '9s'",
        "mariadb": "SET SESSION idle_transaction_timeout = 9, SESSION idle_write_transaction_timeout = 9",
    }
    database, found = place.st2.node.database, []

    def finish(_in_place: bool) -> None:
        found.append(str(connection.exec_driver_sql(idle[place.kind]).scalar_one()))

    with database.connect() as connection:
        database.dialect.mark_session(connection)
        connection.exec_driver_sql(bound[place.kind])
        connection.commit()
        install.run(database, connection, [], {}, finish)
    assert found == ["0"]


def test_what_comes_out_otherwise_than_on_the_primary_is_not_installed_nor_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's own trigger changes what is written."""
    runs, run = [], install.run

    def run_and_count(*arguments: Any) -> Any:
        runs.append(1)
        return run(*arguments)

    monkeypatch.setattr(install, "run", run_and_count)
    place.st2.node.execute(*THERE[place.kind])
    place.st2.begin(place.primary)
    place.st2.hear(*place.primary.all())
    assert place.st2.over() == Over(installed=False, differs=True)
    assert (place.uncommitted(), place.st2.rows(), place.st2.node.sequence()) == (0, [], 0)
    assert len(runs) == 1


def test_it_ends_where_install_has_run_meanwhile(place: Place) -> None:
    st2, (manifest, one, *rest) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(manifest, one)
    wait_for(place.uncommitted, "the first row")
    st2.node.execute("UPDATE stsync_node SET installed_ms = installed_ms + 1")
    st2.hear(*rest)
    assert st2.over() == Over(installed=False, differs=True)
    assert (place.uncommitted(), st2.rows(), st2.node.sequence()) == (0, [], 0)


def test_tables_without_rows_do_not_end_it_before_the_end(place: Place, waits: threading.Event) -> None:
    """All of them are to be written, and none has a row."""
    place.cluster.primary.execute("DELETE FROM item")
    primary = Primary(place.cluster, full=True)
    place.st2.begin(primary)
    manifest, end = primary.all()
    place.st2.hear(manifest)
    assert waits.wait(30)
    place.st2.wait_heard(primary)
    assert (place.st2.synchronizer.over(), place.st2.node.sequence()) == (None, 0)
    place.st2.hear(end)
    assert place.st2.over() == Over(installed=True)
    assert (place.st2.rows(), place.st2.node.sequence()) == ([], AT)


def test_nothing_is_written_before_all_has_come_where_the_table_has_rows(place: Place) -> None:
    st2, (manifest, one, *_) = place.st2, place.primary.all()
    st2.node.execute("INSERT INTO item VALUES (9, 'nine')")
    before = place.uncommitted()
    st2.begin(place.primary)
    st2.hear(manifest, one)
    st2.wait_heard(place.primary)
    assert place.uncommitted() == before


def test_nobody_else_has_to_wait_where_there_is_one_writer_only(make: Made) -> None:
    place = make("sqlite")
    st2, (manifest, one, *rest) = place.st2, place.primary.all()
    st2.begin(place.primary)
    st2.hear(manifest, one)
    st2.wait_heard(place.primary)
    st2.node.execute("UPDATE stsync_node SET lag_ms = 5")
    st2.hear(*rest)
    assert st2.over() == Over(installed=True)
    assert st2.rows() == ROWS
