"""A change that cannot be applied is kept with its reason, seen, retried and given up; everything else goes on."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from common.dialects.json_writer import JsonNumber
from common.schema import Column, ListedTable, Table
from consumer.spellings import likeness
from tests.faults.conftest import mostly, wait_arrived, wait_running, wait_told
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster

MANY = 70_000  # more than a statement of any of the databases takes parameters


def listed(node: Node) -> list[dict[str, Any]]:
    found = node.command("quarantine", "list", "--json")
    assert found.stdout, found.stderr
    entries: list[dict[str, Any]] = json.loads(found.stdout)["quarantined"]
    assert found.returncode == (1 if entries else 0)
    return entries


def wait_quarantined(node: Node, number: int) -> list[dict[str, Any]]:
    wait_told(
        lambda: node.rows("SELECT count(*) FROM stsync_quarantine")[0][0] == number,
        lambda: f"{number} quarantined changes on {node.name}, now {listed(node)[:3]}",
        20,
    )
    return listed(node)


def behind_one(cluster: Cluster) -> Node:
    """st2, with a unit that the primary does not have and that takes the name `taken`."""
    node = cluster.nodes["st2"]
    node.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    return node


def test_a_missing_parent_is_quarantined_and_healed_when_it_arrives(cluster: Cluster) -> None:
    """TRAPS 29: everything else goes on; the dependency's arrival from the primary applies it without anybody's help."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO unit VALUES (1, 'parent', NULL)")
    cluster.wait_equal()
    node.execute("DELETE FROM unit WHERE id = 1")
    primary.execute(
        "INSERT INTO account VALUES (10, 'child', 1, NULL, NULL)",
        "INSERT INTO unit VALUES (2, 'other', NULL)",
    )
    (entry,) = wait_quarantined(node, 1)
    assert (entry["table"], entry["kind"], len(entry["key"])) == ("account", "insert", 1)
    assert "foreign key" in entry["reason"].lower()
    assert node.rows("SELECT id FROM unit") == [(2,)]
    assert listed(cluster.nodes["st3"]) == []
    primary.execute("UPDATE unit SET name = 'parent again' WHERE id = 1")
    assert wait_quarantined(node, 0) == []  # a moment after the position that its parent brought
    cluster.wait_equal()


def test_status_of_both_nodes_and_show_tell_of_it(cluster: Cluster) -> None:
    """TRAPS 29."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert "unique" in entry["reason"].lower() or "duplicate" in entry["reason"].lower()
    wait_for(lambda: node.status()["quarantined"] == 1, "the secondary's own status")
    wait_told(
        lambda: [one["quarantined"] for one in primary.status()["nodes"]] == [1, 0],
        lambda: f"the primary's status: {primary.status()}",
    )
    shown = node.command("quarantine", "show", str(entry["id"]), "--json")
    assert shown.returncode == 1
    document = json.loads(shown.stdout)
    assert document["columns"] == ["id", "name", "parent"]
    assert document["row"][1:] == ["taken", None]
    unknown = node.command("quarantine", "show", "4711")
    assert unknown.returncode == 3
    assert "4711" in unknown.stderr


def test_every_failed_change_is_kept(cluster: Cluster) -> None:
    """TRAPS 29: also those that fail while others stand in the quarantine already."""
    primary, node = cluster.primary, behind_one(cluster)
    node.execute("INSERT INTO unit VALUES (901, 'taken too', NULL)")
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    wait_quarantined(node, 1)
    primary.execute("INSERT INTO unit VALUES (2, 'taken too', NULL)")
    wait_arrived(cluster)
    assert {entry["key"][0] for entry in wait_quarantined(node, 2)} <= {1, 2, "1", "2"}
    node.execute("DELETE FROM unit WHERE id >= 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_a_newer_change_that_fails_too_is_what_stands_at_the_end(cluster: Cluster) -> None:
    """TRAPS 29: what was quarantined last is what is applied at the end."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    wait_quarantined(node, 1)
    primary.execute("INSERT INTO unit VALUES (2, 'two', NULL)", "UPDATE unit SET parent = 2 WHERE id = 1")
    wait_arrived(cluster)
    entries = listed(node)
    assert entries, "the newer change of the row is lost"
    node.execute("DELETE FROM unit WHERE id = 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_a_newer_change_overtakes_a_quarantined_one(cluster: Cluster) -> None:
    """TRAPS 29: it carries the whole row; the older one must never come back."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    wait_quarantined(node, 1)
    primary.execute("UPDATE unit SET name = 'free' WHERE id = 1")
    wait_quarantined(node, 0)
    node.execute("DELETE FROM unit WHERE id = 900")
    cluster.wait_equal()
    assert node.rows("SELECT name FROM unit") == [("free",)]


def test_a_newer_change_applied_together_with_the_failed_one_overtakes_it(cluster: Cluster) -> None:
    """TRAPS 29: under backlog both stand in one database transaction of the secondary."""
    primary, node = cluster.primary, behind_one(cluster)
    wait_arrived(cluster)
    assert node.stop() == 0
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    wait_for(lambda: cluster.nodes["st3"].rows("SELECT 1 FROM unit"), "the first change set")
    primary.execute("UPDATE unit SET name = 'free' WHERE id = 1", "INSERT INTO unit VALUES (2, 'also', NULL)")
    wait_for(lambda: cluster.nodes["st3"].rows("SELECT 1 FROM unit WHERE name = 'free'"), "the second one")
    node.execute("INSERT INTO unit VALUES (901, 'also', NULL)")
    node.start()
    wait_arrived(cluster)
    node.execute("DELETE FROM unit WHERE id >= 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()
    assert node.rows("SELECT name FROM unit WHERE id = 1") == [("free",)]


def test_a_failed_key_update_that_is_overtaken_leaves_no_old_row(cluster: Cluster) -> None:
    """TRAPS 4, 29: the newer change sets the row of the new key; that of the old key must go all the same."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (5, 'five', NULL)")
    wait_arrived(cluster)
    primary.execute("UPDATE unit SET id = 7, name = 'taken' WHERE id = 5")
    wait_quarantined(node, 1)
    primary.execute("UPDATE unit SET name = 'free' WHERE id = 7")
    wait_arrived(cluster)
    node.execute("DELETE FROM unit WHERE id = 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_a_failed_key_update_does_not_move_a_newer_row(cluster: Cluster) -> None:
    """TRAPS 4, 29: the old key was given to a new row meanwhile, which is not the one that moved."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (5, 'five', NULL)")
    wait_arrived(cluster)
    primary.execute("UPDATE unit SET id = 7, name = 'taken' WHERE id = 5")
    wait_quarantined(node, 1)
    primary.execute("INSERT INTO unit VALUES (5, 'new five', NULL)")
    wait_arrived(cluster)
    node.execute("DELETE FROM unit WHERE id = 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_truncation_overtakes_what_is_quarantined_of_its_table(cluster: Cluster) -> None:
    """TRAPS 2, 29; the other two engines tell nobody of a truncation."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    node.execute("INSERT INTO account VALUES (900, 'taken', NULL, NULL, NULL)")
    primary.execute("INSERT INTO account VALUES (1, 'taken', NULL, NULL, NULL)")
    wait_quarantined(node, 1)
    primary.execute("TRUNCATE account CASCADE")
    wait_arrived(cluster)
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_a_missing_table_is_quarantined_and_healed(cluster: Cluster) -> None:
    """TRAPS 6, 29: by the command, once the table is there again."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    cluster.wait_equal()
    columns = "(name VARCHAR(80) NOT NULL, node VARCHAR(40) NOT NULL, val TEXT, islocal INT NOT NULL DEFAULT 0"
    node.execute("DROP TABLE param")
    primary.execute("INSERT INTO param VALUES ('p', 'x', '1', 0)", "INSERT INTO unit VALUES (1, 'goes on', NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert "param" in entry["reason"]
    assert node.rows("SELECT name FROM unit") == [("goes on",)]
    again = node.command("quarantine", "retry")
    assert again.returncode == 1, again.stderr
    assert len(listed(node)) == 1
    node.execute(f"CREATE TABLE param {columns}, PRIMARY KEY (name, node))")
    retried = node.command("quarantine", "retry")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    cluster.wait_equal()


def test_a_missing_column_is_quarantined_and_healed(cluster: Cluster) -> None:
    """TRAPS 6, 29: also after a restart that finds the column missing."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    cluster.wait_equal()
    node.execute("ALTER TABLE account RENAME COLUMN note TO remark")
    primary.execute("INSERT INTO account VALUES (1, 'a', NULL, 'n', NULL)", "INSERT INTO unit VALUES (1, 'goes on', NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert "note" in entry["reason"]
    node.kill()
    primary.execute("INSERT INTO account VALUES (2, 'b', NULL, 'n', NULL)")
    node.start()
    wait_arrived(cluster)
    wait_quarantined(node, 2)
    assert node.rows("SELECT name FROM unit") == [("goes on",)]
    node.execute("ALTER TABLE account RENAME COLUMN remark TO note")
    wait_told(lambda: node.command("quarantine", "retry").returncode == 0, lambda: f"{listed(node)}")
    assert node.rows("SELECT id, note FROM account ORDER BY id") == [(1, "n"), (2, "n")]


def test_retry_with_the_service_stopped(cluster: Cluster) -> None:
    """TRAPS 29: the command itself applies it; by id or all."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert node.stop() == 0
    assert node.command("quarantine", "retry", str(entry["id"])).returncode == 1
    node.execute("DELETE FROM unit WHERE id = 900")
    captured = node.rows("SELECT count(*) FROM stsync_outbox")
    done = node.command("quarantine", "retry", str(entry["id"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert node.rows("SELECT id, name FROM unit") == [(1, "taken")]
    assert node.rows("SELECT count(*) FROM stsync_outbox") == captured
    node.start()
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_great_many_are_retried_with_the_service_stopped(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 29: all that were asked for, also those that need one that comes later."""
    cluster = new_cluster(database_kind)
    node = cluster.nodes["st2"]
    names = "id, epoch, sequence, table_name, kind, columns_json, key_json, row_json, reason, attempts, first_ms, last_ms"
    child = '["id","name","parent"]'
    with node.engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO stsync_quarantine ({names}) VALUES (:i, 1, 1, 'unit', 'I', :c, :k, :row, 'made up', 1, 0, 0)"
            ),
            [
                {"i": i, "k": str(i), "c": child, "row": f'[{i},"unit {i}",{1200 if i < 1200 else "null"}]'}
                for i in range(1, 1201)
            ],
        )
    done = node.command("quarantine", "retry")
    assert (done.returncode, done.stdout) == (0, "1200 applied, 0 still cannot be applied\n")
    assert node.rows("SELECT count(*) FROM unit") == [(1200,)]


def test_discard_gives_one_up(cluster: Cluster) -> None:
    """TRAPS 29."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    (entry,) = wait_quarantined(node, 1)
    gone = node.command("quarantine", "discard", str(entry["id"]))
    assert gone.returncode == 0, gone.stderr
    assert "differs" in gone.stdout
    assert listed(node) == []
    assert node.command("quarantine", "discard", str(entry["id"])).returncode == 3
    primary.execute("INSERT INTO unit VALUES (2, 'goes on', NULL)")
    wait_arrived(cluster)
    assert cluster.differences() == ["st2.unit: 1 rows missing or different, 1 extra of 2"]


def test_names_that_sound_like_trouble_are_quarantined_too(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 29: an error is told by its code; a column called `locked` or a table called `disk` is no outage."""
    cluster = new_cluster(
        database_kind,
        schema=("CREATE TABLE disk (id BIGINT PRIMARY KEY, locked VARCHAR(20) UNIQUE)",),
        tables="disk\n",
        nodes=("st1", "st2"),
    )
    cluster.start()
    wait_running(*cluster.nodes.values())
    node = cluster.nodes["st2"]
    node.execute("INSERT INTO disk VALUES (900, 'closed')")
    cluster.primary.execute("INSERT INTO disk VALUES (1, 'closed')")
    wait_quarantined(node, 1)
    node.execute("DELETE FROM disk WHERE id = 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_many_that_stay_do_not_keep_others_from_being_retried(cluster: Cluster) -> None:
    """TRAPS 29: more changes stand in the quarantine than one round retries."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)", "INSERT INTO unit VALUES (2, 'two', NULL)")
    cluster.wait_equal()
    node.execute("DELETE FROM unit")
    values = ", ".join(f"({number}, 'a{number}', 1, NULL, NULL)" for number in range(520))
    primary.execute(f"INSERT INTO account VALUES {values}")
    wait_quarantined(node, 520)
    primary.execute("INSERT INTO account VALUES (1000, 'last', 2, NULL, NULL)")
    wait_quarantined(node, 521)
    node.execute("INSERT INTO unit VALUES (2, 'two', NULL)")
    wait_for(lambda: node.rows("SELECT 1 FROM account WHERE id = 1000"), "the last one retried", 30)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_deferred_constraint_spoils_only_the_change_that_breaks_it(new_cluster: MakeCluster, kind: str) -> None:
    """TRAPS 29: it shows at the commit only; the others of its transaction, and later ones, go on, and it heals."""
    schema = (
        "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(80))",
        "CREATE TABLE account (id BIGINT PRIMARY KEY, unit_id BIGINT REFERENCES unit (id) DEFERRABLE INITIALLY DEFERRED)",
    )
    cluster = new_cluster(kind, schema=schema, tables="unit\naccount\n")
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO account VALUES (1, 5)", "INSERT INTO unit VALUES (5, 'after its child')")
    cluster.wait_equal()
    node.execute("UPDATE account SET unit_id = NULL", "DELETE FROM unit")
    primary.execute("INSERT INTO account VALUES (2, 5)", "INSERT INTO account VALUES (3, NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert "foreign key" in entry["reason"].lower()
    assert node.rows("SELECT id FROM account ORDER BY id") == [(1,), (3,)]
    primary.execute("INSERT INTO account VALUES (4, NULL)")
    wait_arrived(cluster)
    primary.execute("UPDATE unit SET name = 'here again'")
    wait_quarantined(node, 0)
    primary.execute("UPDATE account SET unit_id = NULL WHERE id = 1")
    cluster.wait_equal()


def test_what_a_silent_cascade_may_have_changed_is_tried_by_its_id_only(new_cluster: MakeCluster) -> None:
    """TRAPS 2, 29: MariaDB tells nobody what it did to the child; the operator may know."""
    schema = (
        "CREATE TABLE unit (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40))",
        "CREATE TABLE account (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40) UNIQUE, unit_id BIGINT,"
        " FOREIGN KEY (unit_id) REFERENCES unit (id) ON DELETE CASCADE)",
    )
    settings = "[replay]\nretry_quarantine_s = 0.5\n"
    cluster = new_cluster("mariadb", schema=schema, tables="unit\naccount\n", settings=settings, nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO unit VALUES (1, 'one')")
    wait_arrived(cluster)
    node.execute("INSERT INTO account VALUES (900, 'taken', NULL)")
    primary.execute("INSERT INTO account VALUES (10, 'taken', 1)")
    (entry,) = wait_quarantined(node, 1)
    primary.execute("DELETE FROM unit WHERE id = 1")
    primary.execute("INSERT INTO unit VALUES (1, 'anew')")
    wait_arrived(cluster)
    node.execute("DELETE FROM account WHERE id = 900")
    assert "a full synchronization is needed" in listed(node)[0]["reason"]
    assert node.command("quarantine", "retry").returncode == 1
    assert node.rows("SELECT id FROM account") == primary.rows("SELECT id FROM account") == []
    assert node.command("quarantine", "retry", str(entry["id"])).returncode == 0
    assert node.rows("SELECT id FROM account") == [(10,)]


def test_a_cascading_key_update_with_a_change_that_fails(cluster: Cluster) -> None:
    """TRAPS 4, 29: the child stands before its parent in SQLite's log; neither hinders the other when each is tried alone."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO account VALUES (1, 'one', NULL, NULL, NULL)", "INSERT INTO login VALUES (1, 'a', 'd')")
    wait_arrived(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)", "UPDATE account SET id = 7 WHERE id = 1")
    (entry,) = wait_quarantined(node, 1)
    assert entry["table"] == "unit"
    wait_told(lambda: node.rows("SELECT account_id FROM login") == [(7,)], lambda: node.rows("SELECT * FROM login"))
    node.execute("DELETE FROM unit WHERE id = 900")
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_changes_of_one_row_that_wait_heal_in_any_order(cluster: Cluster) -> None:
    """TRAPS 29: the newer goes first, for what it needs arrives first; the older must not come back over it."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)", "INSERT INTO unit VALUES (2, 'two', NULL)")
    cluster.wait_equal()
    node.execute("DELETE FROM unit")
    primary.execute("INSERT INTO account VALUES (7, 'old', 1, NULL, NULL)", "UPDATE account SET name = 'new', unit_id = 2")
    wait_told(lambda: len(listed(node)) >= 1, lambda: listed(node))
    node.execute("INSERT INTO unit VALUES (2, 'two', NULL)")
    wait_for(lambda: node.rows("SELECT name FROM account") == [("new",)], "the newer change applied", 30)
    wait_quarantined(node, 0)
    node.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    primary.execute("INSERT INTO unit VALUES (3, 'three', NULL)")
    cluster.wait_equal()
    assert node.rows("SELECT name, unit_id FROM account") == [("new", 2)]


@mostly("mariadb")
def test_a_great_many_overtaken_at_once(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 29: more of them than a statement of any database takes parameters."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(20))",)
    cluster = new_cluster(database_kind, schema=schema, tables="item\n", nodes=("st1", "st2"))
    cluster.start()
    wait_running(*cluster.nodes.values())
    primary, node = cluster.primary, cluster.nodes["st2"]
    dialect = primary.database.dialect
    names = (
        "epoch, sequence, table_name, kind, columns_json, key_json, likeness, row_json, reason, attempts, first_ms, last_ms,"
        " requested"
    )
    table = ListedTable(Table("item", (Column("id", "BIGINT"),), ("id",)))
    keys = [dialect.json_value(JsonNumber(i)) for i in range(MANY)]
    with node.engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO stsync_quarantine ({names}) VALUES (1, 1, 'item', 'U', '[\"id\",\"name\"]', :key, :like, :row, 'made',"
                " 1, 0, 0, 0)"
            ),
            [{"key": key, "like": likeness(key, table), "row": f"[{key},null]"} for key in keys],
        )
    node.stop()
    with primary.engine.begin() as connection:
        connection.execute(text("INSERT INTO item VALUES (:id, 'new')"), [{"id": i} for i in range(MANY)])
    node.start()
    cluster.wait_equal()
    wait_quarantined(node, 0)
    assert node.rows("SELECT count(*) FROM item WHERE name = 'new'") == [(MANY,)]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_truncation_that_waits_does_not_keep_others_from_being_retried(cluster: Cluster) -> None:
    """TRAPS 29: it is never tried again, and asking for it changes nothing for the others."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()
    node.execute("DELETE FROM unit")
    primary.execute("INSERT INTO account VALUES (7, 'seven', 1, NULL, NULL)")
    (entry,) = wait_quarantined(node, 1)
    node.execute(
        "INSERT INTO stsync_quarantine (epoch, sequence, table_name, kind, columns_json, key_json, row_json, reason, attempts,"
        " first_ms, last_ms, requested) VALUES (1, 1, 'param', 'T', '[]', '', '[]', 'made up', 1, 0, 0, 1)"
    )
    wait_for(lambda: not node.rows("SELECT 1 FROM stsync_quarantine WHERE requested = 1"), "the request answered", 20)
    node.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    wait_for(
        lambda: [one["id"] for one in listed(node)] != [entry["id"]] and node.rows("SELECT 1 FROM account"), "retried", 30
    )


def test_a_table_with_another_key_here_is_quarantined_alone(cluster: Cluster) -> None:
    """TRAPS 6, 29: everything else goes on."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    wait_running(node)
    node.stop()
    node.execute(
        "DROP TABLE login",
        "CREATE TABLE login (account_id BIGINT NOT NULL, name VARCHAR(80) NOT NULL, digest VARCHAR(80) NOT NULL,"
        " PRIMARY KEY (name, account_id, digest))",
    )
    assert node.command("install").returncode == 0
    node.start()
    primary.execute("INSERT INTO account VALUES (1, 'one', NULL, NULL, NULL)", "INSERT INTO login VALUES (1, 'a', 'd')")
    primary.execute("UPDATE login SET digest = 'e'", "DELETE FROM login")
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    wait_for(lambda: node.rows("SELECT id FROM unit") == [(1,)], "the other table goes on", 30)
    assert {(one["table"], "the schemas differ" in one["reason"]) for one in listed(node)} == {("login", True)}
    wait_for(lambda: node.status()["state"] == "in_sync", "in_sync, as soon as it has heard the primary again", 30)


def test_a_reason_shows_no_values(cluster: Cluster) -> None:
    """STYLE 13: values of rows may be secret; reasons stand in `status` and in logs."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    node.execute("INSERT INTO unit VALUES (900, 'secret\nname', NULL)")
    primary.execute("INSERT INTO unit VALUES (1, 'secret\nname', NULL)")
    (entry,) = wait_quarantined(node, 1)
    assert "secret" not in entry["reason"]
    assert "unique" in entry["reason"].lower() or "duplicate" in entry["reason"].lower()
    assert "secret" not in node.log


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_list_shows_each_with_its_whole_reason(cluster: Cluster) -> None:
    """INTERFACE, quarantine list: also where the terminal is narrow, or is none."""
    primary, node = cluster.primary, behind_one(cluster)
    primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    (entry,) = wait_quarantined(node, 1)
    first, second = node.command("quarantine", "list").stdout.splitlines()
    assert first.startswith(f"{entry['id']}  insert unit {json.dumps(entry['key'])}  sequence {entry['sequence']}, ")
    assert second == f"    {entry['reason']}"
