"""A captured column that is dropped or renamed: nothing is lost silently, and the writer's error and `status` say what to do."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from tests.conftest import NewDatabase
from tests.faults.conftest import wait_running
from tests.harness import NO_BROKER, Node, make_cluster
from tests.integration.conftest import MakeCluster

UNIT = "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(40), note VARCHAR(40))"
LONG = "a" * 60  # as long as a name can be, nearly
SCHEMA = (UNIT, UNIT.replace("unit", LONG))
DROP, RENAME = "ALTER TABLE unit DROP COLUMN note", "ALTER TABLE unit RENAME COLUMN note TO remark"
ALTERED = ("the schema of unit changed", "stsync install", "may fail until then", "full synchronization is needed")


@pytest.fixture
def node(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Node]:
    """A primary with capture installed and no service."""
    tables = f"unit\n{LONG}\n"
    made = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=tables, nodes=("st1",))
    made.primary.execute("INSERT INTO unit VALUES (1, 'old', 'x')")
    yield made.primary
    made.primary.close()


def captured(node: Node) -> list[tuple[str, str]]:
    return [(str(kind), str(rows)) for kind, rows in node.rows("SELECT kind, rows_json FROM stsync_outbox ORDER BY id")][1:]


def warned(node: Node) -> None:
    (told,) = node.status()["warnings"]
    for words in ALTERED:
        assert words in told


def installed(node: Node) -> None:
    assert node.command("install").returncode == 0
    assert node.faults() == []


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("alter", [DROP, RENAME], ids=["drop", "rename"])
def test_a_writer_fails_with_a_reason_until_install_has_run(node: Node, alter: str) -> None:
    """TRAPS 6: the trigger names the column; a write that it cannot capture does not happen."""
    node.execute(alter)
    warned(node)
    for statement in ("INSERT INTO unit (id, name) VALUES (2, 'new')", "UPDATE unit SET name = 'new'"):
        with pytest.raises(DBAPIError) as told:
            node.execute(statement)
        words = ("stsync_", "_unit", "note") if node.database.dialect.name == "postgresql" else ("stsync install", "unit")
        for word in words:
            assert word in str(told.value.orig)
    assert node.rows("SELECT id, name FROM unit") == [(1, "old")]
    assert captured(node) == []
    installed(node)
    node.execute("INSERT INTO unit (id, name) VALUES (2, 'new')", "UPDATE unit SET name = 'new' WHERE id = 1")
    assert [kind for kind, _ in captured(node)] == ["I", "U"]


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_the_reason_fits_whatever_the_table_is_called(node: Node) -> None:
    """TRAPS 6: MariaDB bounds its length."""
    node.execute(DROP.replace("unit", LONG))
    with pytest.raises(DBAPIError) as told:
        node.execute(f"INSERT INTO {LONG} VALUES (1, 'new')")
    assert "stsync install" in str(told.value.orig)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_sqlite_keeps_a_captured_column_and_renames_it_in_the_triggers(node: Node) -> None:
    """TRAPS 6: dropping it is refused with the trigger's name; renamed, it is captured under the name that the other nodes know."""
    with pytest.raises(DBAPIError, match="error in trigger stsync_"):
        node.execute(DROP)
    assert node.faults() == []
    node.execute(RENAME)
    warned(node)
    node.execute("INSERT INTO unit VALUES (2, 'new', 'y')")
    assert captured(node) == [("I", '[2,"new","y"]')]
    assert '"note"' in str(node.rows("SELECT columns_json FROM stsync_outbox ORDER BY id")[-1][0])
    installed(node)


@pytest.mark.parametrize("alter", [DROP, RENAME], ids=["drop", "rename"])
def test_a_column_that_is_excluded_first_can_go_while_programs_write(node: Node, alter: str) -> None:
    """TRAPS 6, README: no writer fails and no change is lost."""
    path = node.home / "conf/sync_tables.conf"
    path.write_text("unit exclude=note\n")
    installed(node)
    node.execute(alter)
    assert any(ALTERED[0] in told for told in node.status()["warnings"])
    node.execute("INSERT INTO unit (id, name) VALUES (2, 'new')", "UPDATE unit SET name = 'new' WHERE id = 1")
    assert [kind for kind, _ in captured(node)] == ["I", "U"]
    path.write_text("unit\n")
    installed(node)
    node.execute("DELETE FROM unit")
    assert "D" in {kind for kind, _ in captured(node)}


WIDER = {
    "postgresql": "ALTER TABLE t ALTER COLUMN c TYPE double precision",
    "mariadb": "ALTER TABLE t MODIFY c DOUBLE",
    "sqlite": "ALTER TABLE t ADD COLUMN d DOUBLE",
}
NARROW = {"postgresql": "real", "mariadb": "FLOAT", "sqlite": "TEXT"}


def test_running_services_follow_an_altered_schema_from_install_on(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 6, 30: the very next change is captured and replayed by the schema as it is now, without a restart."""
    schema = (f"CREATE TABLE t (id BIGINT PRIMARY KEY, c {NARROW[database_kind]})",)
    cluster = new_cluster(database_kind, schema=schema, tables="t\n")
    cluster.start()
    wait_running(*cluster.nodes.values())
    cluster.primary.execute("INSERT INTO t (id, c) VALUES (1, 0.5)")
    cluster.wait_equal()
    cluster.on_all(WIDER[database_kind])
    for node in cluster.nodes.values():
        installed(node)
    column = "d" if database_kind == "sqlite" else "c"
    cluster.primary.execute(f"INSERT INTO t (id, {column}) VALUES (2, 0.123456789012345)")
    cluster.wait_equal()
    for node in cluster.nodes.values():
        assert node.rows(f"SELECT {column} FROM t WHERE id = 2") == [(0.123456789012345,)]
        assert node.rows("SELECT 1 FROM stsync_quarantine") == []
        assert "Traceback" not in node.log
    assert cluster.primary.rows("SELECT 1 FROM stsync_rejected") == []


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_the_schema_can_be_read_while_a_table_is_altered(node: Node) -> None:
    """TRAPS 6: for a moment of an ALTER the server knows nothing of the table, or not all."""
    stop = threading.Event()

    def alter() -> None:
        for number in range(2000):
            if stop.wait(0.2):
                break
            node.execute(f"ALTER TABLE unit MODIFY note VARCHAR({41 + number % 2}), ALGORITHM=COPY")

    with ThreadPoolExecutor(1) as pool, node.database.connect(read_only=True) as connection:
        altering = pool.submit(alter)
        try:
            read = [node.database.dialect.tables(connection)["unit"].columns for _ in range(60)]
        finally:
            stop.set()
        altering.result()
    assert {tuple(column.name for column in columns) for columns in read} == {("id", "name", "note")}
