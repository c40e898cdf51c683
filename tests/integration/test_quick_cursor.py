"""The cursors that call libpq directly behave as the driver's own do."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import Connection

from common.database import Database
from common.dialects.base import QUICK_CURSOR, raw_cursor
from common.dialects.postgresql_cursor import QuickCursor, QuickCursors
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


@pytest.mark.parametrize("begun", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("late", [False, True], ids=["by a statement", "by the commit"])
def test_what_is_committed_in_one_pipeline_goes_together_or_not_at_all(
    connection: Connection, *, begun: bool, late: bool
) -> None:
    """TRAPS 7, 27: also where only the end of the transaction finds out."""
    connection.exec_driver_sql('ALTER TABLE q ADD UNIQUE ("100%%") DEFERRABLE INITIALLY DEFERRED')
    connection.commit()
    cursors: QuickCursors = connection.info[QUICK_CURSOR]
    for attempt in range(3):  # plainly, and prepared
        rows = [(attempt * 10, f"{attempt}", None, None), (attempt * 10 + 1, f"other {attempt}", None, None)]
        if begun:
            raw_cursor(connection).execute("SELECT 1")
        cursors.run_all([(INSERT, row) for row in rows], commit=True)
        connection.commit()
        bad = (99, f"{attempt}", None, None) if late else (attempt * 10, "again", None, None)
        if begun:
            raw_cursor(connection).execute("SELECT 1")
        with pytest.raises(psycopg.errors.UniqueViolation):
            cursors.run_all([(INSERT, (attempt * 10 + 2, "lost", None, None)), (INSERT, bad)], commit=True)
        connection.rollback()
    found = connection.exec_driver_sql('SELECT id, "100%%" FROM q ORDER BY id').fetchall()
    assert [tuple(row) for row in found] == [
        (0, "0"),
        (1, "other 0"),
        (10, "1"),
        (11, "other 1"),
        (20, "2"),
        (21, "other 2"),
    ]


def test_transactions_without_words_have_the_isolation_of_the_others(new_database: NewDatabase) -> None:
    """Whatever the server's, the database's or the user's default is."""
    url = new_database("postgresql")
    database = Database(DatabaseSettings(url=url))  # type: ignore[arg-type]
    with database.connect() as connection:
        name = connection.engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
        connection.commit()
    anew = Database(DatabaseSettings(url=url))  # type: ignore[arg-type]
    for read_only, expected in ((False, "read committed"), (True, "repeatable read")):
        with anew.connect(read_only=read_only) as connection:
            cursors: QuickCursors = connection.info[QUICK_CURSOR]
            shown = "SELECT current_setting('transaction_isolation')"
            assert cursors.run_all([(shown, ())], commit=True).get_value(0, 0).decode() == expected
            assert cursors.run_all([(shown, ())], commit=False).get_value(0, 0).decode() == expected
            connection.rollback()
