"""MariaDB: many rows that come together go into statements that the server keeps prepared, with the same result as any other way."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pymysql.err import InternalError, OperationalError
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from common.dialects.mariadb import Mariadb
from common.dialects.mariadb_driver import Connection as Driver
from common.dialects.mariadb_driver import execution
from common.dialects.mariadb_writer import MariadbWriter
from common.dialects.script import SMALL
from common.errors import Unavailable
from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster, wait_for
from tests.integration.test_mariadb_literals import TEXTS
from tests.integration.test_values import executed
from tests.pipeline import Pipeline

ROWS = 1_100
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
    with counted(mariadb, ROWS // 128):
        pipeline.move()
    query = "SELECT id, HEX(name), HEX(note) FROM account ORDER BY id"
    assert pipeline.secondary.rows(query) == pipeline.primary.rows(query)
    assert len(pipeline.secondary.rows(query)) == ROWS
    assert pipeline.wrong() == []


@pytest.mark.parametrize("length", [0, 1, 250, 251, 252, 65_535, 65_536, 1 << 24])
def test_texts_of_any_length(pipeline: Pipeline, length: int) -> None:
    node = pipeline.secondary
    node.execute("CREATE TABLE long_ (id BIGINT, body LONGTEXT, more LONGTEXT, last LONGTEXT)")
    body = "é" * (length // 2) + "x" * (length % 2)
    connection = node.database.open()
    driver: Any = connection.connection.driver_connection
    number = driver.prepare("INSERT INTO long_ VALUES (?, ?, ?, ?)")
    assert driver.execute_prepared(execution(number, ["1", body, None, body[::-1]])) == 1
    driver.commit()
    connection.close()
    assert node.rows("SELECT id, body, more, last FROM long_") == [(1, body, None, body[::-1])]


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
    with counted(mariadb, 2):
        pipeline.move()
    ((waiting, count),) = pipeline.secondary.rows("SELECT MIN(row_json), COUNT(*) FROM stsync_quarantine")
    assert count == 1
    assert waiting.startswith('["301"')
    assert pipeline.secondary.rows("SELECT COUNT(*) FROM account WHERE id <= 1100") == [(ROWS - 1,)]


def test_a_row_that_is_there_already_is_set(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    pipeline.secondary.execute("INSERT INTO account VALUES (301, 'name 301', NULL, 'local', NULL)")
    with pipeline.primary.engine.begin() as connection:
        write(connection)
    with counted(mariadb, 2):
        pipeline.move()
    assert pipeline.wrong() == []


def test_a_table_may_be_altered_in_between(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    with counted(mariadb, 3 * (ROWS // 128)):
        for turn, change in enumerate(
            ("ALTER TABLE account ADD more INT DEFAULT 7 FIRST", "ALTER TABLE account DROP more", "ANALYZE TABLE account")
        ):
            with pipeline.primary.engine.begin() as connection:
                write(connection, 1 + turn * ROWS)
            pipeline.move()
            pipeline.secondary.execute(change)
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT COUNT(*) FROM account") == [(3 * ROWS,)]


@contextmanager
def keeping_none(mariadb: PrivateMariaDB) -> Iterator[None]:
    """The server keeps no prepared statements meanwhile."""
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)
    with administrator.connect() as connection:
        most = connection.exec_driver_sql("SELECT @@global.max_prepared_stmt_count").scalar_one()
        connection.exec_driver_sql("SET GLOBAL max_prepared_stmt_count = 0")
        try:
            yield
        finally:
            connection.exec_driver_sql(f"SET GLOBAL max_prepared_stmt_count = {most}")


@pytest.mark.usefixtures("at_once")
def test_a_server_that_keeps_no_statements_takes_literals(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    before = executed(mariadb)
    with keeping_none(mariadb):
        with pipeline.primary.engine.begin() as connection:
            write(connection)
        pipeline.move()
    assert executed(mariadb) == before
    assert pipeline.wrong() == []


@pytest.mark.parametrize("keeps", [True, False], ids=["prepared", "as literals"])
def test_sealed_bytes_are_kept_as_they_are(pipeline: Pipeline, mariadb: PrivateMariaDB, keeps: bool) -> None:
    """What a large drain writes into the journal: no byte of it is text."""
    node = pipeline.secondary
    node.execute("CREATE TABLE kept (id BIGINT NOT NULL PRIMARY KEY, b LONGBLOB, f DOUBLE, t TEXT)")
    sizes = [0, 1, 250, 251, 252, 65_535, 65_536, 2 << 20]
    written = [(2**62 + size, (bytes(range(256)) * (size // 256 + 1))[:size], size / 3, f"ä{size}'") for size in sizes]
    before = executed(mariadb)
    with node.database.connect() as connection, nullcontext() if keeps else keeping_none(mariadb):
        script = node.database.dialect.script(connection, SMALL + 1)
        script.executemany("INSERT INTO kept (id, b, f, t) VALUES (%s, %s, %s, %s)", written)
        for place, count in ((2**62 + 1, 1), (1, 0)):
            script.execute("UPDATE kept SET b = %s WHERE id = %s", (b"\xff" * 2_000, place))
            assert script.rowcount == count
        script.execute("UPDATE kept SET t = 'x' WHERE id > %s", (2**62 + 65_000,))
        assert script.rowcount == 3
        script.commit()
    assert (executed(mariadb) - before) == (sum(size > 1_024 for size in sizes) + 2 if keeps else 0)
    found = node.rows("SELECT id, HEX(b), f, t FROM kept ORDER BY id")
    changed = [(i, b"\xff" * 2_000 if i == 2**62 + 1 else b, f, "x" if i > 2**62 + 65_000 else t) for i, b, f, t in written]
    assert found == [(i, b.hex().upper(), f, t) for i, b, f, t in changed]


def test_only_so_many_statements_are_kept(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    """Those used last."""
    node = pipeline.secondary
    node.execute("CREATE TABLE kept (id BIGINT)")
    connection = node.database.open()
    driver: Any = connection.connection.driver_connection
    before, prepared = (status(mariadb, name) for name in ("Prepared_stmt_count", "Com_stmt_prepare"))
    for turn in range(2):
        for number in range(50):
            for one in (0, number):
                statement = f"INSERT INTO kept VALUES (? + {one})"
                assert driver.execute_prepared(execution(driver.prepare(statement), [str(1000 * turn)])) == 1
    assert status(mariadb, "Prepared_stmt_count") - before == 32
    assert status(mariadb, "Com_stmt_prepare") - prepared == 1 + 2 * 49  # the first one, used all the time, once only
    driver.commit()
    connection.close()
    wanted = sorted((1000 * turn + one,) for turn in range(2) for number in range(50) for one in (0, number))
    assert node.rows("SELECT id FROM kept ORDER BY id") == wanted


@pytest.mark.usefixtures("at_once")
def test_few_rows_and_rows_of_wide_tables_go_as_literals(tmp_path: Path, new_database: NewDatabase) -> None:
    """It would cost the server more than it spares."""
    columns = ", ".join(f"c{number} INT" for number in range(300))
    schema = (f"CREATE TABLE wide (id INT PRIMARY KEY, {columns})", "CREATE TABLE few (id INT PRIMARY KEY, v TEXT)")
    cluster = make_cluster(
        tmp_path / "c", "mariadb", NO_BROKER, new_database, schema=schema, tables="wide\nfew\n", nodes=("st1", "st2")
    )
    pipeline = Pipeline(cluster)
    pipeline.primary.execute("INSERT INTO wide (id, c299) SELECT seq, seq FROM seq_1_to_1500")
    pipeline.move()
    for first in (1, 601):
        pipeline.primary.execute(f"INSERT INTO few SELECT seq, LPAD(seq, 200, ' ') FROM seq_{first}_to_{first + 599}")
        pipeline.move()
        assert replayed_prepared(pipeline) == (0 if first == 1 else 4)  # by now that many came that it pays
    assert pipeline.wrong() == []
    pipeline.close()


@pytest.mark.usefixtures("at_once")
def test_many_rows_of_a_small_change_set_stand_behind_what_is_before_them(pipeline: Pipeline) -> None:
    """All of it is one compound statement."""
    for turn, first in enumerate((0, 1100)):
        with pipeline.primary.engine.begin() as connection:
            connection.execute(text(f"INSERT INTO unit VALUES ({turn}, 'u{turn}', NULL)"))
            rows = [{"i": i, "n": str(i), "u": turn, "v": None} for i in range(first, first + 1100)]
            connection.execute(INSERT, rows)
        pipeline.move()
        assert replayed_prepared(pipeline) == 0
    assert pipeline.wrong() == []


def test_rows_that_the_server_leaves_out_are_told(
    pipeline: Pipeline, mariadb: PrivateMariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trigger may from MariaDB 11.8 on (SIGNAL SQLSTATE '02TRG'): they are not sent for ever."""
    called = 0

    def leave_out(_driver: Driver, _call: bytes) -> int:
        nonlocal called
        called += 1
        assert called < 100
        return 0

    monkeypatch.setattr(Driver, "execute_prepared", leave_out)
    with pipeline.primary.engine.begin() as connection:
        write(connection)
    pipeline.move()
    assert called >= ROWS // 128
    assert pipeline.wrong() == []


def test_a_portion_that_is_larger_than_a_packet_comes_in_pieces(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)

    def allow(size: int) -> int:
        with administrator.connect() as connection:
            before = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar_one()
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {size}")
        return int(before)

    with pipeline.primary.engine.begin() as connection:
        rows = [{"i": i, "n": str(i), "u": None, "v": "\N{BANK}" * (3_000 if 896 <= i < 1_024 else 0)} for i in range(1_100)]
        connection.execute(INSERT, rows)
    before = allow(1 << 20)
    try:
        pipeline.again()  # a connection to which that applies
        pipeline.move()
    finally:
        allow(before)
    assert pipeline.wrong() == []


def test_a_connection_that_is_killed_between_portions(pipeline: Pipeline, mariadb: PrivateMariaDB) -> None:
    with pipeline.primary.engine.begin() as connection:
        write(connection)
    local = pipeline.secondary.engine.connect()
    local.execute(text("INSERT INTO account VALUES (9999, 'name 301', NULL, 'local', NULL)"))
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_who_waits, mariadb)
        with pytest.raises(Unavailable), counted(mariadb, 2):
            pipeline.move()
        assert killed.result()
    local.rollback()
    local.close()
    assert pipeline.secondary.rows("SELECT COUNT(*) FROM account") == [(0,)]
    pipeline.again()
    assert pipeline.wrong() == []


@pytest.mark.parametrize(
    "error",
    [
        InternalError("Packet sequence number wrong - got 3 expected 1"),
        OperationalError(1243, "Unknown prepared statement handler (7) given to EXECUTE"),
        OperationalError(1615, "Prepared statement needs to be re-prepared"),
    ],
    ids=["out of step", "forgotten", "again and again"],
)
def test_what_a_connection_has_lost_is_not_the_fault_of_a_change(error: Exception) -> None:
    """TRAPS 29: a new connection begins anew."""
    assert isinstance(Mariadb().translate(error), Unavailable)


def replayed_prepared(pipeline: Pipeline) -> int:
    """How many prepared statements the secondary has run."""
    return int(pipeline.session("SHOW SESSION STATUS LIKE 'Com_stmt_execute'")[0][1])


def kill_who_waits(mariadb: PrivateMariaDB) -> bool:
    """Kill the connection that waits for a lock of another one."""
    wait_for(lambda: status(mariadb, "Innodb_row_lock_current_waits"), "a connection that waits for a lock")
    with create_engine(mariadb.admin_url, poolclass=NullPool).connect() as connection:
        number = connection.exec_driver_sql(
            "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        ).scalar_one()
        connection.exec_driver_sql(f"KILL {int(number)}")
    return True


def status(mariadb: PrivateMariaDB, name: str) -> int:
    with create_engine(mariadb.admin_url, poolclass=NullPool).connect() as connection:
        return int(connection.exec_driver_sql(f"SHOW GLOBAL STATUS LIKE '{name}'").one()[1])
