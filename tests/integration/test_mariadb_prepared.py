"""MariaDB: many rows that come together go into statements that the server keeps prepared, with the same result as any other way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from common.dialects.mariadb_driver import execution
from common.dialects.mariadb_writer import MariadbWriter
from deploy.servers import PrivateMariaDB
from tests.integration.test_mariadb_literals import TEXTS
from tests.integration.test_values import executed
from tests.pipeline import Pipeline

ROWS = 600
INSERT = text("INSERT INTO account VALUES (:i, :n, :u, :v, NULL)")


@pytest.fixture
def database_kind() -> str:
    return "mariadb"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done a second time, the careful way."""

    def other_way(*_: object) -> int:
        raise AssertionError("inserted by `update` and `insert_missing`")

    monkeypatch.setattr(MariadbWriter, "update", other_way)


def write(connection: Connection, first: int = 1, unit: int | None = None) -> None:
    rows = [
        {"i": i, "n": f"name {i}", "u": unit if i == 301 else None, "v": f"{i:>150}"} for i in range(first, first + ROWS)
    ]
    connection.execute(INSERT, rows)


@contextmanager
def counted(mariadb: PrivateMariaDB, at_least: int) -> Iterator[None]:
    before = executed(mariadb)
    yield
    assert executed(mariadb) - before >= at_least


@pytest.mark.usefixtures("at_once")
def test_every_text_arrives_to_the_byte(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    notes = [*TEXTS.values(), None, *("ä" * n for n in (125, 126, 250, 251)), *("x" * n for n in (250, 251, 252, 900)), None]
    with pipeline.primary.engine.begin() as connection:
        names = [f"{i} {str(notes[i % len(TEXTS)])[:60]}" for i in range(ROWS)]
        connection.execute(INSERT, [{"i": i, "n": names[i], "u": None, "v": notes[i % len(notes)]} for i in range(ROWS)])
    with counted(mariadb, ROWS // 256):
        pipeline.move()
    query = "SELECT id, HEX(name), HEX(note) FROM account ORDER BY id"
    assert pipeline.secondary.rows(query) == pipeline.primary.rows(query)
    assert len(pipeline.secondary.rows(query)) == ROWS
    assert pipeline.wrong() == []


@pytest.mark.parametrize("length", [0, 1, 250, 251, 252, 65_535, 65_536, 1 << 24])
def test_texts_of_any_length(pipeline: Pipeline, length: int) -> None:
    node = pipeline.secondary
    node.execute("CREATE TABLE long_ (id BIGINT, body LONGTEXT, more LONGTEXT)")
    connection = node.database.open()
    driver: Any = connection.connection.driver_connection
    number = driver.prepare("INSERT INTO long_ VALUES (?, ?, ?)")
    assert driver.execute_prepared(execution(number, ["1", "é" * (length // 2) + "x" * (length % 2), None])) == 1
    driver.commit()
    connection.close()
    assert node.rows("SELECT id, LENGTH(body), more FROM long_") == [(1, length, None)]


@pytest.mark.parametrize("unit", [None, 77])
def test_a_row_that_is_refused_among_many(pipeline: Pipeline, mariadb: PrivateMariaDB, unit: int | None) -> None:
    """By a unique value that a local row has, or by a parent that is not there: it alone waits."""
    if unit is not None:
        pipeline.primary.execute(f"INSERT INTO unit VALUES ({unit}, 'u', NULL)")
        pipeline.move()
        pipeline.secondary.execute(f"DELETE FROM unit WHERE id = {unit}")
    else:
        pipeline.secondary.execute("INSERT INTO account VALUES (9999, 'name 301', NULL, 'local', NULL)")
    with pipeline.primary.engine.begin() as connection:
        write(connection, unit=unit)
    with counted(mariadb, 1):
        pipeline.move()
    ((waiting, count),) = pipeline.secondary.rows("SELECT MIN(row_json), COUNT(*) FROM stsync_quarantine")
    assert count == 1
    assert waiting.startswith('["301"')
    assert pipeline.secondary.rows("SELECT COUNT(*) FROM account WHERE id <= 600") == [(ROWS - 1,)]


def test_a_row_that_is_there_already_is_set(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    pipeline.secondary.execute("INSERT INTO account VALUES (301, 'name 301', NULL, 'local', NULL)")
    with pipeline.primary.engine.begin() as connection:
        write(connection)
    with counted(mariadb, 1):
        pipeline.move()
    assert pipeline.wrong() == []


def test_a_table_may_be_altered_in_between(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    with counted(mariadb, 6):
        for turn, change in enumerate(
            ("ALTER TABLE account ADD more INT DEFAULT 7 FIRST", "ALTER TABLE account DROP more", "ANALYZE TABLE account")
        ):
            with pipeline.primary.engine.begin() as connection:
                write(connection, 1 + turn * ROWS)
            pipeline.move()
            pipeline.secondary.execute(change)
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT COUNT(*) FROM account") == [(3 * ROWS,)]


@pytest.mark.usefixtures("at_once")
def test_a_server_that_keeps_no_statements_takes_literals(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)
    with administrator.connect() as connection:
        most = connection.exec_driver_sql("SELECT @@global.max_prepared_stmt_count").scalar_one()
        connection.exec_driver_sql("SET GLOBAL max_prepared_stmt_count = 0")
    before = executed(mariadb)
    try:
        with pipeline.primary.engine.begin() as connection:
            write(connection)
        pipeline.move()
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL max_prepared_stmt_count = {most}")
    assert executed(mariadb) == before
    assert pipeline.wrong() == []


def test_only_so_many_statements_are_kept(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    node = pipeline.secondary
    node.execute("CREATE TABLE kept (id BIGINT)")
    connection = node.database.open()
    driver: Any = connection.connection.driver_connection
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool).connect()

    def kept() -> int:
        return int(administrator.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'").one()[1])

    before = kept()
    for turn in range(2):
        for number in range(50):
            statement = f"INSERT INTO kept VALUES (? + {number})"
            assert driver.execute_prepared(execution(driver.prepare(statement), [str(1000 * turn)])) == 1
    assert kept() - before == 32
    driver.commit()
    connection.close()
    administrator.close()
    wanted = [(1000 * turn + number,) for turn in range(2) for number in range(50)]
    assert node.rows("SELECT id FROM kept ORDER BY id") == wanted
