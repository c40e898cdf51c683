"""Changes that are not captured any more, or not all of them, are told of: by `status`, by the service's log, by `install`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from publisher import capture
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_told
from tests.harness import NO_BROKER, Node, make_cluster
from tests.integration.conftest import MakeCluster

UNIT = "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(40))"
SCHEMA = (UNIT, "CREATE TABLE other (id BIGINT PRIMARY KEY, name VARCHAR(40))")
TABLES = "unit\nother\n"
GONE = ("changes of unit are not captured", "stsync install", "full synchronization is needed")
AGAIN = ("DROP TABLE unit", UNIT)


@pytest.fixture
def node(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Node]:
    """A primary with capture installed and no service."""
    made = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES, nodes=("st1",))
    yield made.primary
    made.primary.close()


def warned(node: Node, *words: str) -> None:
    """One warning, and it holds these words."""
    (told,) = node.status()["warnings"]
    for word in words:
        assert word in told


def wait_logged(node: Node, words: str) -> None:
    wait_told(lambda: words in node.log, lambda: node.log)


def mended(node: Node) -> None:
    """`install` tells of it too, and brings all in order."""
    done = node.command("install")
    assert done.returncode == 0, done.stderr
    assert "full synchronization is needed" in done.stderr
    assert node.faults() == []
    assert "full synchronization" not in node.command("install").stderr
    before = node.rows("SELECT count(*) FROM stsync_outbox")[0][0]
    node.execute("INSERT INTO unit (id, name) VALUES (4711, 'x')")
    assert node.rows("SELECT count(*) FROM stsync_outbox")[0][0] == before + 1


def test_a_dropped_trigger_is_told_of(node: Node) -> None:
    """TRAPS 6: one is enough; as JSON and in the text for people."""
    on = " ON unit" if node.database.dialect.name == "postgresql" else ""
    node.execute(f"DROP TRIGGER stsync_d_unit{on}")
    warned(node, *GONE)
    assert GONE[0] in " ".join(node.command("status").stdout.split())
    mended(node)


def test_a_table_that_was_made_anew_is_told_of(node: Node) -> None:
    """TRAPS 6: as a restored dump does; the shape is the same."""
    node.execute(*AGAIN)
    warned(node, *GONE)
    mended(node)


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_a_dump_that_brings_the_triggers_along_is_told_of(node: Node) -> None:
    """TRAPS 6: it fills the table before it makes them, so that its rows are not captured."""
    if node.database.dialect.name == "postgresql":
        (made,) = node.rows(
            "SELECT string_agg(pg_get_triggerdef(oid), ';') FROM pg_trigger WHERE tgname LIKE '%stsync__\\_unit'"
        )[0]
        always = node.rows("SELECT 'ALTER TABLE unit ENABLE ALWAYS TRIGGER ' || quote_ident(tgname) FROM pg_trigger"
                           " WHERE tgname LIKE '%stsync__\\_unit'")  # fmt: skip
        statements = [*str(made).split(";"), *(str(one) for (one,) in always)]
    else:
        names = node.rows("SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_TABLE = 'unit'")
        shown = [node.rows(f"SHOW CREATE TRIGGER {name}")[0] for (name,) in names]
        statements = [f"SET sql_mode = '{shown[0][1]}'", *(str(one[2]) for one in shown)]
    assert len(statements) in (4, 10)
    with node.engine.begin() as connection:
        for statement in (*AGAIN, "INSERT INTO unit VALUES (1, 'restored')", *statements):
            connection.exec_driver_sql(statement.replace("%", "%%"))
    warned(node, *GONE)
    mended(node)


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize(
    "statements",
    [
        ("DISABLE TRIGGER stsync_u_unit",),
        ("DISABLE TRIGGER ALL", "ENABLE TRIGGER ALL"),
        ("ENABLE REPLICA TRIGGER stsync_u_unit",),
    ],
)
def test_a_disabled_trigger_is_told_of(node: Node, statements: tuple[str, ...]) -> None:
    """TRAPS 6: and so is one that was disabled for a while, as restoring data alone does."""
    node.execute(*(f"ALTER TABLE unit {one}" for one in statements))
    warned(node, *GONE)
    mended(node)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_writer_in_the_role_of_a_replica_is_captured(
    new_cluster: MakeCluster, database_kind: str, postgresql: object
) -> None:
    """TRAPS 5: other programs' bulk loads and replication set that role; our own mark of replay works in it all the same."""
    node = new_cluster(database_kind, schema=SCHEMA, tables=TABLES, nodes=("st1",), broker_url=NO_BROKER).primary
    assert node._engine is not None
    node._engine.dispose()
    node._engine = None
    administrator = str(postgresql.admin_url).rpartition("/")[0]  # type: ignore[attr-defined]
    node.url = f"{administrator}/{node.url.rpartition('/')[2]}"
    node.execute(
        "SET LOCAL session_replication_role = 'replica'", "INSERT INTO unit VALUES (1, 'x')", "UPDATE unit SET id = 2"
    )
    assert node.rows("SELECT kind FROM stsync_outbox ORDER BY id") == [("I",), ("K",)]
    node.execute(
        "SET LOCAL session_replication_role = 'replica'",
        "SET LOCAL stsync.replay = 'on'",
        "INSERT INTO unit VALUES (3, 'x')",
    )
    assert node.rows("SELECT count(*) FROM stsync_outbox") == [(2,)]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_unique_index_made_after_install_is_told_of(node: Node) -> None:
    """TRAPS 2: which rows OR REPLACE deletes is worked out from the unique keys."""
    node.execute("CREATE UNIQUE INDEX name_of_unit ON unit (name)")
    warned(node, "changes of unit may be lost: unique keys", "stsync install", "full synchronization is needed")
    mended(node)


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_cascade_made_after_install_is_told_of(node: Node) -> None:
    """TRAPS 2: MariaDB hands the deletes of a table that is not listed on without firing our triggers."""
    node.execute(
        "CREATE TABLE parent (id BIGINT PRIMARY KEY)",
        "ALTER TABLE unit ADD CONSTRAINT c FOREIGN KEY (id) REFERENCES parent (id) ON DELETE CASCADE",
    )
    warned(
        node, "the list of tables does not fit the database", "hands deletes or key updates of parent on to unit", "RESTRICT"
    )
    node.execute("ALTER TABLE unit DROP CONSTRAINT c")
    assert node.faults() == []


def test_a_list_that_was_edited_and_not_installed_is_told_of(node: Node) -> None:
    """DESIGN §4: new lines, lines that are gone, and other options."""
    node.execute("CREATE TABLE third (id BIGINT PRIMARY KEY)")
    (node.home / "conf/sync_tables.conf").write_text("unit exclude=name\nthird\n")
    told = node.status()["warnings"]
    for words in (
        "changes of unit may be lost: unique keys, or its line in the list",
        "third is listed and not captured yet",
        "other is still captured and not listed",
    ):
        assert len([one for one in told if words in one and "stsync install" in one]) == 1
    capture.install(node.database, node.settings)
    assert node.faults() == []


def test_the_service_tells_its_log_once(new_cluster: MakeCluster) -> None:
    """TRAPS 6: on the primary and, where it would hide local edits, on a secondary; and when all is in order again."""
    settings = "[intervals]\ncapture_check_s = 0.1\n"
    cluster = new_cluster("sqlite", schema=SCHEMA, tables=TABLES, nodes=("st1", "st2"), settings=settings)
    cluster.start()
    cluster.on_all(*AGAIN)
    for node in cluster.nodes.values():
        wait_logged(node, "changes of unit are not captured")
    cluster.on_all("DROP TABLE other", SCHEMA[1])
    for node in cluster.nodes.values():
        wait_logged(node, "changes of other, unit are not captured")
    cluster.install()
    for node in cluster.nodes.values():
        wait_logged(node, "capture_in_order")
        told = [line for line in node.log.splitlines() if "capture_faulty" in line]
        assert len(told) == 2, told
        assert all('"level": "error"' in line and "stsync install" in line for line in told)


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_an_installation_that_was_killed_half_way_is_told_of(node: Node) -> None:
    """TRAPS 6: MariaDB commits each trigger by itself; a second `install` makes the rest."""
    (node.home / "conf/sync_tables.conf").write_text("unit exclude=name\nother\n")
    with node.database.connect() as connection:
        found = capture.plan(node.database, connection, node.settings)
        connection.rollback()
    trigger = next(one for one in found.statements if "TRIGGER" in one and "stsync_u_" in one and one.startswith("CREATE"))
    until = found.statements.index(trigger)
    with node.engine.begin() as connection:
        for statement in found.statements[: until + 1]:
            connection.execute(text(statement.replace(":", "\\:")))
    (node.home / "conf/sync_tables.conf").write_text(TABLES)
    warned(node, *GONE)
    mended(node)
