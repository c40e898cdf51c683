"""What a writer does while foreign keys are switched off is done on the secondaries as it was done: nothing is taken along there
that stayed on the primary, and nothing is refused that was taken there (TRAPS 2).

SQLite has them switched off unless a program says otherwise; dumps of MariaDB switch them off, and so do dumps of data and
subscriptions on PostgreSQL."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from consumer import retries
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.integration.test_refused_rows import Clock
from tests.pipeline import Pipeline

SCHEMA = (
    "CREATE TABLE grp (id BIGINT PRIMARY KEY, code VARCHAR(20) NOT NULL UNIQUE, note VARCHAR(20))",
    "CREATE TABLE member (id BIGINT PRIMARY KEY, grp_id BIGINT, note VARCHAR(20), mine INT NOT NULL DEFAULT 0,"
    " FOREIGN KEY (grp_id) REFERENCES grp (id) ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE hint (id BIGINT PRIMARY KEY, grp_code VARCHAR(20),"
    " FOREIGN KEY (grp_code) REFERENCES grp (CODE) ON DELETE SET NULL ON UPDATE CASCADE)",
    "CREATE TABLE node (id BIGINT PRIMARY KEY, above BIGINT, FOREIGN KEY (above) REFERENCES node (id) ON DELETE CASCADE)",
    "CREATE TABLE unlisted (id BIGINT PRIMARY KEY, grp_id BIGINT, FOREIGN KEY (grp_id) REFERENCES grp (id) ON DELETE CASCADE)",
)
TABLES = 'grp\nmember where="mine = 0"\nhint\nnode\n'
ROWS = (
    "INSERT INTO grp VALUES (1, 'one', 'a'), (2, 'two', 'b'), (3, 'three', 'c')",
    "INSERT INTO member (id, grp_id, note) VALUES (10, 1, 'x'), (11, 1, 'y'), (20, 2, 'z'), (30, 3, 'w')",
    "INSERT INTO hint VALUES (1, 'one'), (2, 'two'), (3, 'three')",
    "INSERT INTO node VALUES (1, NULL), (2, 1), (3, 2)",
)


OFF = {"mariadb": "SET foreign_key_checks = 0", "postgresql": "SET session_replication_role = replica"}
Blindly = Callable[..., None]


@pytest.fixture
def blindly(family: Pipeline, database_kind: str, request: pytest.FixtureRequest) -> Blindly:
    """Runs statements on the primary in one transaction of a program that has foreign keys switched off."""
    url = family.primary.engine.url

    def run(*statements: str) -> None:
        if database_kind == "sqlite":
            connection = sqlite3.connect(str(url.database))  # it has them as they are unless one says otherwise
            with connection:
                for statement in statements:
                    connection.execute(statement)
            connection.close()
            return
        at = url
        if database_kind == "postgresql":
            at = make_url(request.getfixturevalue("postgresql").admin_url).set(database=url.database)
        engine = create_engine(at, poolclass=NullPool)
        with engine.begin() as link:
            for statement in (OFF[database_kind], *statements):
                link.execute(text(statement))

    return run


@pytest.fixture
def allowed(database_kind: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """PostgreSQL: the nodes' user may do what only a superuser may otherwise."""
    if database_kind != "postgresql":
        yield
        return
    server = request.getfixturevalue("postgresql")
    engine = create_engine(server.admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as link:
        link.execute(text(f"GRANT SET ON PARAMETER session_replication_role TO {server.user}"))
        yield
        link.execute(text(f"REVOKE SET ON PARAMETER session_replication_role FROM {server.user}"))


@pytest.fixture
def family(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Pipeline]:
    """A primary and a secondary with parents and children of each kind, equal."""
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES, nodes=("st1", "st2")
    )
    made = Pipeline(cluster)
    cluster.primary.execute(*ROWS)
    made.move()
    assert made.wrong() == []
    yield made
    made.close()


DONE_BLINDLY = {
    "a parent is deleted": ["DELETE FROM grp WHERE id = 1"],
    "all parents are deleted": ["DELETE FROM grp"],
    "a parent of its own table is deleted": ["DELETE FROM node WHERE id = 1"],
    "a parent gets another key": ["UPDATE grp SET id = 9 WHERE id = 1"],
    "what is referred to changes": ["UPDATE grp SET code = 'uno' WHERE id = 1"],
    "a parent goes and comes again": ["DELETE FROM grp WHERE id = 1", "INSERT INTO grp VALUES (1, 'one', 'again')"],
    "a child goes before, others stay": ["DELETE FROM member WHERE id = 10", "DELETE FROM grp WHERE id = 1"],
    "many tables": ["UPDATE member SET note = 'new'", "DELETE FROM grp WHERE id = 2", "INSERT INTO node VALUES (4, 3)"],
}


@pytest.mark.parametrize("statements", DONE_BLINDLY.values(), ids=DONE_BLINDLY)
def test_what_stayed_on_the_primary_without_its_parent_stays_on_a_secondary(
    family: Pipeline, allowed: None, blindly: Blindly, statements: list[str]
) -> None:
    blindly(*statements)
    family.move()
    assert family.wrong() == []
    family.primary.execute("INSERT INTO grp VALUES (50, 'fifty', 'd')", "INSERT INTO member (id, grp_id) VALUES (500, 50)")
    family.primary.execute("DELETE FROM grp WHERE id = 50")  # with foreign keys again: it takes its child along
    family.move()
    assert family.wrong() == []
    assert family.secondary.rows("SELECT count(*) FROM member WHERE id = 500") == [(0,)]


def test_orphans_are_taken_where_foreign_keys_were_switched_off_on_purpose(
    family: Pipeline, allowed: None, blindly: Blindly, database_kind: str
) -> None:
    if database_kind == "sqlite":
        pytest.skip("there it is the default, and says nothing; an orphan waits in the quarantine for its parent")
    blindly("INSERT INTO member (id, grp_id) VALUES (99, 98)", "UPDATE member SET grp_id = 97 WHERE id = 20")
    family.move()
    assert family.wrong() == []


def test_blind_changes_and_others_in_one_change_set_are_each_done_in_their_own_way(
    family: Pipeline, allowed: None, blindly: Blindly
) -> None:
    blindly("DELETE FROM grp WHERE id = 1")
    family.primary.execute("DELETE FROM grp WHERE id = 2")
    family.move()
    assert family.wrong() == []
    assert family.secondary.rows("SELECT id FROM member ORDER BY id") == [(10,), (11,), (30,)]


def test_a_local_child_and_one_of_an_unlisted_table_go_with_their_parent(family: Pipeline) -> None:
    family.secondary.execute("INSERT INTO member (id, grp_id, mine) VALUES (77, 1, 1)", "INSERT INTO unlisted VALUES (5, 1)")
    family.primary.execute("DELETE FROM grp WHERE id = 1")
    family.move()
    assert family.wrong() == []
    assert family.secondary.rows("SELECT count(*) FROM member WHERE id = 77") == [(0,)]
    assert family.secondary.rows("SELECT count(*) FROM unlisted") == [(0,)]


def test_where_a_node_may_not_switch_foreign_keys_off_such_a_change_waits_and_says_what_is_missing(
    family: Pipeline, blindly: Blindly, database_kind: str
) -> None:
    if database_kind != "postgresql":
        pytest.skip("there it takes no right")
    blindly("DELETE FROM grp WHERE id = 1", "INSERT INTO node VALUES (4, 3)")
    family.primary.execute("INSERT INTO grp VALUES (4, 'four', 'd')")
    family.move()
    found = family.secondary.rows("SELECT table_name, kind, reason FROM stsync_quarantine ORDER BY id")
    assert [(table, kind) for table, kind, _ in found] == [("grp", "D"), ("node", "I")]
    assert all("GRANT SET ON PARAMETER session_replication_role" in reason for _, _, reason in found)
    assert family.secondary.rows("SELECT count(*) FROM member") == [(4,)]
    assert family.secondary.rows("SELECT count(*) FROM grp") == [(4,)]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_parent_that_waits_goes_though_it_has_children(
    family: Pipeline, blindly: Blindly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 29: an update that sets nothing to which a child refers is handed on to none; one that does, to those alone that refer to
    what it changes. (On the others each change says how its writer had it.)"""
    family.secondary.execute("INSERT INTO grp VALUES (99, 'taken', 'local')", "CREATE UNIQUE INDEX grp_note ON grp (note)")
    family.secondary.execute("UPDATE grp SET note = 'held' WHERE id = 99")
    family.primary.execute("UPDATE grp SET note = 'held' WHERE id = 1")  # `code`, to which hints refer, stays as it is
    family.move()
    blindly("UPDATE grp SET code = 'taken' WHERE id = 2")
    family.move()
    assert family.secondary.rows("SELECT count(*) FROM stsync_quarantine") == [(2,)]
    family.secondary.execute("DELETE FROM grp WHERE id = 99")
    clock = Clock(time.monotonic() + 60)
    monkeypatch.setattr(retries, "time", clock)
    for _ in range(4):
        family.move()
        clock.now += 60
    assert family.secondary.rows("SELECT note FROM grp WHERE id = 1") == [("held",)]
    waiting = family.secondary.rows("SELECT row_json, reason FROM stsync_quarantine")
    assert [row for row, _ in waiting] == ['[2,"taken","b"]']
    assert "hint" in str(waiting[0][1])
