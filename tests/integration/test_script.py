"""What ends a hot transaction: it is all done and committed, or nothing is, whatever stands in the way (TRAPS 7)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from common.database import Database
from common.dialects.script import SMALL, Script
from common.errors import Fault, NotApplicable, Unavailable
from common.settings import DatabaseSettings
from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

CASES = ["small", "large"]
SCHEMA = "CREATE TABLE q (id BIGINT NOT NULL PRIMARY KEY, v VARCHAR(40))"


@pytest.fixture
def database(new_database: NewDatabase, database_kind: str) -> Database:
    found = Database(DatabaseSettings(url=new_database(database_kind)))  # type: ignore[arg-type]
    with found.connect() as connection:
        connection.exec_driver_sql(SCHEMA)
        connection.commit()
    return found


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.connect() as found:
        yield found


def script(database: Database, connection: Connection, case: str = "small") -> Script:
    return database.dialect.script(connection, SMALL + (case == "large"))


def insert(one: Script, *rows: tuple[Any, ...]) -> None:
    one.executemany(f"INSERT INTO q VALUES ({one.mark}, {one.mark})", rows)


def try_twice(one: Script) -> None:
    insert(one, (1, "a"), (1, "b"))
    one.commit()


def rows(database: Database) -> list[tuple[Any, ...]]:
    with database.connect() as other:
        return [tuple(row) for row in other.exec_driver_sql("SELECT id, v FROM q ORDER BY id")]


@pytest.mark.parametrize("case", CASES)
def test_all_of_it_is_committed(database: Database, connection: Connection, case: str) -> None:
    for turn in range(4):  # plainly, and prepared
        one = script(database, connection, case)
        one.promise(1)
        insert(one, (10 * turn, "100% 'é' \\ ;"), (10 * turn + 1, None))
        one.promise(2)
        one.execute(f"UPDATE q SET v = {one.mark} WHERE id >= {one.mark}", ("COMMIT; --", 10 * turn))
        assert one.rowcount == 2
        one.promise(None)
        one.execute(f"DELETE FROM q WHERE id < {one.mark}", (10 * turn,))
        one.commit()
        assert rows(database) == [(10 * turn, "COMMIT; --"), (10 * turn + 1, "COMMIT; --")]
        assert not connection.in_transaction()


def test_an_unkept_promise_undoes_all(database: Database, connection: Connection) -> None:
    for _ in range(3):
        one = script(database, connection)
        insert(one, (1, "a"))
        one.promise(1)
        one.execute(f"UPDATE q SET v = {one.mark} WHERE id = {one.mark}", ("b", 77))
        if one.rowcount == 1:  # it was only collected
            with pytest.raises(NotApplicable, match="did not find the rows"), database.guard():
                one.commit()
        connection.rollback()
        assert rows(database) == []
    one = script(database, connection)
    insert(one, (2, "after it"))
    one.commit()
    assert rows(database) == [(2, "after it")]


@pytest.mark.parametrize("case", CASES)
def test_a_row_set_to_what_it_was_is_a_row_that_was_found(database: Database, connection: Connection, case: str) -> None:
    one = script(database, connection)
    insert(one, (1, "a"))
    one.commit()
    one = script(database, connection, case)
    one.promise(1)
    one.execute(f"UPDATE q SET v = {one.mark} WHERE id = {one.mark}", ("a", 1))
    assert one.rowcount == 1
    one.commit()
    assert rows(database) == [(1, "a")]


@pytest.mark.parametrize("case", CASES)
def test_an_error_undoes_all_and_is_the_databases_own(database: Database, connection: Connection, case: str) -> None:
    for _ in range(3):
        with pytest.raises(NotApplicable, match=r"(?i)unique|duplicate"), database.guard():
            try_twice(script(database, connection, case))
        connection.rollback()
        assert rows(database) == []


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_what_the_commit_refuses_is_told(database: Database, connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE q ADD CONSTRAINT c UNIQUE (v) DEFERRABLE INITIALLY DEFERRED")
    connection.commit()
    one = script(database, connection)
    insert(one, (1, "a"), (2, "a"))
    with pytest.raises(NotApplicable, match="unique"), database.guard():
        one.commit()
    connection.rollback()
    assert rows(database) == []


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_lost_connection_is_told(database: Database, connection: Connection, database_kind: str, when: str) -> None:
    """TRAPS 29: it is the database's fault, not the change's."""
    end = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}[database_kind]
    own = {"postgresql": "pg_backend_pid()", "mariadb": "CONNECTION_ID()"}[database_kind]
    number = connection.exec_driver_sql(f"SELECT {own}").scalar_one()
    connection.rollback()
    one = script(database, connection)
    insert(one, (1, "a"))
    if when == "before":
        with database.connect() as other:
            other.exec_driver_sql(end.format(number))
    else:
        one.execute(end.format(own))
    with pytest.raises(Unavailable), database.guard():
        one.commit()
    connection.invalidate()
    assert rows(database) == []


@pytest.mark.parametrize("why", ["installed", "moved"])
def test_a_relay_whose_position_is_not_its_own_says_why(pipeline: Pipeline, why: str) -> None:
    """TRAPS 6, 7: and sequences nothing."""
    column, error = {"installed": ("installed_ms", Unavailable), "moved": ("sequence", Fault)}[why]
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'u', NULL)")
    pipeline.primary.execute(f"UPDATE stsync_node SET {column} = {column} + 1")
    with pytest.raises(error):
        pipeline.relay.drain()
    pipeline.relay.close()
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_journal") == [(0,)]
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_outbox") == [(1,)]
    pipeline.primary.execute(f"UPDATE stsync_node SET {column} = {column} - 1")
    pipeline.restart_relay()
    pipeline.move()
    assert pipeline.wrong() == []


@pytest.mark.parametrize("packet", [16 << 20, 512 << 10])
def test_values_that_take_much_more_room_in_a_statement_than_in_a_message(
    tmp_path: Path, new_database: NewDatabase, mariadb: PrivateMariaDB, packet: int
) -> None:
    """TRAPS 29: a TIMESTAMP is an expression of a hundred characters, and a small batch of them no small statement."""
    schema = ("CREATE TABLE ev (id BIGINT NOT NULL PRIMARY KEY, made TIMESTAMP NULL, seen TIMESTAMP NULL)",)
    cluster = make_cluster(
        tmp_path / "c", "mariadb", NO_BROKER, new_database, schema=schema, tables="ev\n", nodes=("st1", "st2")
    )
    admin = create_engine(mariadb.admin_url, poolclass=NullPool)
    with admin.connect() as connection:
        before = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar_one()
        connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {packet}")
    pipeline = Pipeline(cluster)
    try:
        values = "'2024-01-02 03:04:05', '1970-01-01 00:00:01'"
        pipeline.primary.execute(f"INSERT INTO ev SELECT seq, {values} FROM seq_1_to_1800")
        pipeline.move()
        pipeline.primary.execute(*(f"INSERT INTO ev VALUES ({5000 + n}, {values})" for n in range(15)))
        pipeline.move()
        assert pipeline.wrong() == []
    finally:
        pipeline.close()
        with admin.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {before}")
        admin.dispose()
