"""What capture takes, what it leaves, and how `install` keeps it in line with the lists."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from common.errors import Misconfigured
from publisher import capture, outbox
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, Node, make_cluster, wait_for
from tests.integration.conftest import SCHEMA, TABLES

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def node(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Node]:
    """A primary with capture installed and no service: what stands in its outbox stays there."""
    made = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES, nodes=("st1",))
    yield made.primary
    made.primary.close()


def captured(node: Node) -> list[tuple[str, str, int]]:
    rows = node.rows("SELECT table_name, kind, row_count FROM stsync_outbox ORDER BY id")
    return [(str(table), str(kind), int(count)) for table, kind, count in rows]


def relist(node: Node, tables: str) -> None:
    (node.home / "conf/sync_tables.conf").write_text(tables)
    capture.install(node.database, node.settings)


def test_only_listed_tables_and_committed_changes_are_captured(node: Node) -> None:
    node.execute("INSERT INTO audit VALUES (1, 'x')")
    with node.engine.connect() as connection:
        connection.execute(text("INSERT INTO unit VALUES (1, 'x', NULL)"))
        connection.rollback()
    assert captured(node) == []
    node.execute("INSERT INTO unit VALUES (1, 'x', NULL)")
    assert captured(node) == [("unit", "I", 1)]


def test_an_update_that_changes_nothing_makes_no_event(node: Node) -> None:
    """TRAPS 3: whatever it sets to the value that stands there already, and whatever it does to excluded columns."""
    node.execute(
        "INSERT INTO unit VALUES (1, 'u', NULL)",
        "INSERT INTO account VALUES (1, 'a', 1, 'noted', 'once'), (2, 'b', NULL, NULL, NULL)",
        "INSERT INTO login VALUES (1, 'a', 'd')",
        "INSERT INTO param VALUES ('p', 'x', 'v', 0), ('own', 'x', 'v', 1)",
    )
    held = node.rows("SELECT * FROM stsync_outbox ORDER BY id")
    assert held
    for statement in (
        "UPDATE account SET note = note",
        "UPDATE account SET note = 'noted', unit_id = 1 WHERE id = 1",
        "UPDATE account SET note = NULL, unit_id = NULL WHERE id = 2",
        "UPDATE account SET id = id",
        "UPDATE login SET account_id = account_id, name = name",
        "UPDATE param SET islocal = islocal",
        "UPDATE account SET last_login = 'again'",
        "UPDATE account SET last_login = NULL",
        "UPDATE account SET name = name, last_login = 'thrice'",
    ):
        node.execute(statement)
        assert node.rows("SELECT * FROM stsync_outbox ORDER BY id") == held, statement
    node.execute("UPDATE account SET note = 'new' WHERE id = 2")
    assert captured(node)[-1] == ("account", "U", 1)


def test_install_may_be_repeated_and_changes_nothing_then(node: Node) -> None:
    with node.database.connect() as connection:
        again = capture.plan(node.database, connection, node.settings)
    assert again.sql == ""
    assert node.command("install", "--dry-run").stdout.startswith("-- nothing to do")
    node.execute("INSERT INTO unit VALUES (1, 'x', NULL)")
    capture.install(node.database, node.settings)
    assert captured(node) == [("unit", "I", 1)]


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_what_is_written_most_is_not_compressed(node: Node) -> None:
    """DESIGN §10."""
    stored = (
        "SELECT attname FROM pg_attribute WHERE attstorage = 'e' AND attrelid IN ({}::regclass, {}::regclass) ORDER BY 1"
    )
    stored = stored.format("'stsync_outbox'", "'stsync_journal'")
    assert node.rows(stored) == [("message",), ("rows_json",)]


def test_install_brings_the_triggers_in_line_with_an_edited_list(node: Node) -> None:
    relist(node, "unit exclude=parent\naudit\n")
    node.execute(
        "INSERT INTO account VALUES (1, 'a', NULL, NULL, NULL)",
        "INSERT INTO audit VALUES (1, 'x')",
        "INSERT INTO unit VALUES (1, 'a', NULL)",
    )
    node.execute("UPDATE unit SET parent = 1")
    assert captured(node) == [("audit", "I", 1), ("unit", "I", 1)]


def test_a_dry_run_prints_the_sql_and_changes_nothing(node: Node) -> None:
    (node.home / "conf/sync_tables.conf").write_text("audit\n")
    shown = node.command("install", "--dry-run")
    assert shown.returncode == 0
    assert re.search("CREATE (OR REPLACE )?TRIGGER", shown.stdout)
    assert "DROP TRIGGER" in shown.stdout or "DROP FUNCTION" in shown.stdout
    node.execute("INSERT INTO audit VALUES (1, 'x')", "INSERT INTO unit VALUES (1, 'a', NULL)")
    assert captured(node) == [("unit", "I", 1)]


def test_uninstall_leaves_nothing_behind(node: Node) -> None:
    node.execute("INSERT INTO unit VALUES (7, 'not sent yet', NULL)")
    done = node.command("uninstall")
    assert done.returncode == 0
    assert "thrown away: 1 changes that were not sent" in done.stderr
    node.execute("INSERT INTO unit VALUES (1, 'x', NULL)")
    with node.database.connect() as connection:
        assert node.database.dialect.installed(connection) == []
        assert [name for name in connection.dialect.get_table_names(connection) if "stsync" in name] == []
    told = node.command("status")
    assert told.returncode == 2
    assert "stsync install" in told.stderr


def test_a_faulty_row_filter_is_told_with_file_and_line(node: Node) -> None:
    with pytest.raises(Misconfigured, match=r"sync_tables\.conf:1: where="):
        relist(node, 'param where="no_such_column = 0"\n')


def test_names_that_need_quoting_and_filters_with_percent_signs(node: Node) -> None:
    """TRAPS 30."""
    q = '"' if node.database.dialect.name != "mariadb" else "`"
    table, column = f"{q}odd na%me{q}", f"{q}sel%ect{q}"
    node.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, {column} VARCHAR(40))".replace("%", "%%").replace("%%", "%"))
    relist(node, f'"odd na%me" where="{column.replace(chr(34), chr(92) + chr(34))} not like \'x%\'"\n')
    node.execute(f"INSERT INTO {table} VALUES (1, 'yes')", f"INSERT INTO {table} VALUES (2, 'xno')")
    assert captured(node) == [("odd na%me", "I", 1)]


def test_a_schema_change_after_install_shows_in_status(node: Node) -> None:
    """TRAPS 6."""
    assert node.faults() == []
    node.execute("ALTER TABLE unit ADD COLUMN added VARCHAR(10)")
    assert any("schema of unit changed" in warning for warning in node.status()["warnings"])


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_insert_or_replace_captures_the_rows_that_it_deletes(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 2: SQLite fires no delete trigger for them."""
    cluster = new_cluster(database_kind)
    cluster.start()
    primary = cluster.primary
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)", "INSERT INTO unit VALUES (2, 'two', NULL)")
    primary.execute("INSERT OR REPLACE INTO unit VALUES (3, 'one', NULL)")
    primary.execute("INSERT OR IGNORE INTO unit VALUES (4, 'two', NULL)", "INSERT INTO unit VALUES (5, 'five', 2)")
    primary.execute("INSERT OR REPLACE INTO unit VALUES (5, 'again', 3)")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert node.rows("SELECT id, name FROM unit ORDER BY id") == [(2, "two"), (3, "one"), (5, "again")]
        assert node.command("quarantine", "list").returncode == 0


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_truncate_is_captured(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 2: PostgreSQL has triggers for it."""
    cluster = new_cluster(database_kind)
    cluster.start()
    for node in cluster.nodes.values():
        node.execute("INSERT INTO param VALUES ('own', 'x', '1', 1)")
    cluster.primary.execute(
        "INSERT INTO account VALUES (1, 'a', NULL, NULL, NULL)", "INSERT INTO login VALUES (1, 'a', 'd')"
    )
    cluster.primary.execute("INSERT INTO param VALUES ('all', 'x', '1', 0)")
    cluster.wait_equal()
    cluster.primary.execute("TRUNCATE account CASCADE", "TRUNCATE param")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert node.rows("SELECT count(*) FROM login") == [(0,)]
        assert node.rows("SELECT name FROM param") == [("own",)]


def test_programs_may_write_the_outbox_themselves(cluster: Cluster) -> None:
    """INTERFACE: what is written there and committed is replicated exactly like a captured change."""
    primary = cluster.primary
    with primary.database.connect() as connection:
        outbox.insert(connection, "unit", {"name": 'by "API" é', "id": 1, "parent": None})
        connection.commit()
    with primary.database.connect() as connection:
        outbox.insert(connection, "unit", {"id": 9, "name": "rolled back"})
        connection.rollback()
    primary.execute(
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json)"
        """ VALUES ('unit', 'I', '["name", "id", "parent"]', '["by SQL", 2, null], [ "another" , "3" , 2 ]')"""
    )
    node = cluster.secondaries[0]
    wait_for(lambda: len(node.rows("SELECT id FROM unit")) == 3, "three rows")
    with primary.database.connect() as connection:
        outbox.update(connection, "unit", {"id": 1, "name": "changed", "parent": None})
        outbox.rekey(connection, "unit", {"id": 3}, {"id": 4, "name": "moved", "parent": 2})
        outbox.delete(connection, "unit", {"id": 1})
        connection.commit()
    wait_for(
        lambda: not primary.rows("SELECT 1 FROM stsync_outbox") and node.sequence() == primary.sequence(), "all applied"
    )
    assert node.rows("SELECT id, name, parent FROM unit ORDER BY id") == [(2, "by SQL", None), (4, "moved", 2)]


def test_an_outbox_row_that_is_no_change_is_kept_told_and_stops_nothing(cluster: Cluster) -> None:
    primary = cluster.primary
    bad = [
        ("nowhere", "I", '["id"]', '["1"]'),
        ("unit", "X", '["id"]', '["1"]'),
        ("unit", "I", '["nope"]', '["1"]'),
        ("unit", "I", '["name"]', '["1"]'),
        ("unit", "I", '["id"]', "no json"),
        ("unit", "I", '["id"]', '["1","2"]'),
        ("unit", "I", '["id"]', '[{"a":{}}]'),
    ]
    for table, kind, columns, rows in bad:
        primary.execute(
            "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json) VALUES (:t, :k, :c, :r)",
            t=table,
            k=kind,
            c=columns,
            r=rows,
        )
    primary.execute("INSERT INTO unit VALUES (1, 'good', NULL)")
    cluster.wait_equal()
    assert primary.rows("SELECT count(*) FROM stsync_rejected") == [(len(bad),)]
    assert any("stsync_rejected" in warning for warning in primary.status()["warnings"])
