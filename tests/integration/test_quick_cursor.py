"""The cursors that call libpq directly behave as the driver's own do."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import Connection

from common.database import Database
from common.dialects.base import raw_cursor
from common.dialects.postgresql_cursor import QuickCursor
from common.errors import Unavailable
from common.settings import DatabaseSettings
from tests.conftest import NewDatabase

INSERT = "INSERT INTO q VALUES (%s, %s, %s, %s)"


@pytest.fixture
def connection(new_database: NewDatabase) -> Iterator[Connection]:
    with Database(DatabaseSettings(url=new_database("postgresql"))).connect() as found:  # type: ignore[arg-type]
        found.exec_driver_sql('CREATE TABLE q (id BIGINT PRIMARY KEY, "100%%" TEXT, b BYTEA, f FLOAT8)')
        found.commit()
        yield found


def test_values_come_back_as_they_went(connection: Connection) -> None:
    cursor = raw_cursor(connection)
    assert isinstance(cursor, QuickCursor)
    rows = [(1, "é\n%s $1 '", b"\0\xff%s", 0.1), (2, None, None, None), (-(2**63), "", b"", float("inf"))]
    cursor.executemany(INSERT, rows)
    assert cursor.rowcount == 1
    connection.commit()
    cursor = raw_cursor(connection)
    for _ in range(3):  # plainly, and prepared
        cursor.execute('SELECT id, "100%%", b, f FROM q WHERE id > %s ORDER BY id DESC', (-(2**63) - 0,))
        assert cursor.fetchall() == [rows[1], rows[0]]
    cursor.execute("UPDATE q SET f = 1 WHERE f IS NOT NULL")
    assert cursor.rowcount == 2
    cursor.execute("UPDATE q SET f = 1 WHERE id = %s", (77,))
    assert cursor.rowcount == 0


def test_errors_are_the_drivers(connection: Connection) -> None:
    cursor = raw_cursor(connection)
    for _ in range(3):
        cursor.execute(INSERT, (1, "a", None, None))
        with pytest.raises(psycopg.errors.UniqueViolation) as told:
            cursor.execute(INSERT, (1, "a", None, None))
        assert told.value.sqlstate == "23505"
        assert told.value.diag.constraint_name == "q_pkey"
        connection.rollback()
        cursor = raw_cursor(connection)
    with pytest.raises(psycopg.DataError, match="NUL"):
        cursor.execute(INSERT, (1, "a\0b", None, None))
    connection.rollback()
    assert connection.exec_driver_sql("SELECT count(*) FROM q").scalar() == 0


def test_what_is_prepared_outlives_rollbacks_and_the_drivers_own_statements(connection: Connection) -> None:
    """psycopg deallocates all there are after a rollback, once it has prepared one itself."""
    for number in range(30):
        cursor = raw_cursor(connection)
        cursor.execute(INSERT, (number, "a", None, None))
        with connection.begin_nested() as nested:
            for _ in range(3):
                connection.exec_driver_sql("SELECT count(*) FROM q WHERE id > %s", (number,))
            nested.rollback()
        if number % 3:
            connection.commit()
        else:
            connection.rollback()
    assert connection.exec_driver_sql("SELECT count(*) FROM q").scalar() == 20


def test_a_great_many_statements_do_not_fill_the_server(connection: Connection) -> None:
    for _ in range(3):
        for number in range(150):
            raw_cursor(connection).execute(f"SELECT {number}")
    assert connection.exec_driver_sql("SELECT count(*) <= 100 FROM pg_prepared_statements").scalar()


def test_a_lost_connection_is_told_as_such(new_database: NewDatabase) -> None:
    database = Database(DatabaseSettings(url=new_database("postgresql")))  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="terminat"), database.connect() as connection:
        raw_cursor(connection).execute("SELECT pg_terminate_backend(pg_backend_pid())")
