"""What the nodes' lists disagree about, or cannot mean: told by name and place, never skipped silently (TRAPS 4, 29)."""

from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.faults.conftest import wait_arrived, wait_running, wait_told
from tests.faults.test_misconfiguration import expect
from tests.faults.test_quarantine import listed, wait_quarantined
from tests.harness import NO_BROKER, Cluster, Node, make_cluster
from tests.integration.conftest import MakeCluster

SCHEMA = (
    "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE)",
    "CREATE TABLE other (id BIGINT PRIMARY KEY, name VARCHAR(40))",
)
UNLISTED = "table item is not listed in this node's sync_tables.conf"


@pytest.fixture
def cluster(new_cluster: MakeCluster, database_kind: str) -> Cluster:
    """A primary that lists two tables and a secondary that lists one of them; their services run."""
    settings = "[replay]\nretry_quarantine_s = 0.3\n"
    found = new_cluster(database_kind, schema=SCHEMA, tables="item\nother\n", nodes=("st1", "st2"), settings=settings)
    node = found.nodes["st2"]
    list_here(node, "other\n")
    assert node.command("install").returncode == 0
    found.start()
    wait_running(*found.nodes.values())
    return found


def list_here(node: Node, text: str) -> None:
    (node.home / "conf/sync_tables.conf").write_text(text)


def writes(cluster: Cluster) -> None:
    """More changes than a round of retries takes, each row's in an order that matters."""
    for statement in (
        "INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e')",
        "UPDATE item SET name = 'was a' WHERE id = 1",
        "UPDATE item SET name = 'a' WHERE id = 2",
        "UPDATE item SET id = 6 WHERE id = 3",
        "INSERT INTO item VALUES (3, 'new three')",
        "DELETE FROM item WHERE id = 4",
        "INSERT INTO item VALUES (4, 'd')",
        "UPDATE item SET name = 'b' WHERE id = 1",
        "DELETE FROM item WHERE id = 5",
    ):
        cluster.primary.execute(statement)
        wait_arrived(cluster)


def test_a_table_that_a_secondary_does_not_list_is_quarantined_and_heals_when_it_does(cluster: Cluster) -> None:
    """TRAPS 29: with that reason; everything else goes on; the list takes effect by itself when it is edited."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    writes(cluster)
    primary.execute("INSERT INTO item VALUES (7, 'with it')", "INSERT INTO other VALUES (1, 'goes on')")
    wait_arrived(cluster)
    entries = listed(node)
    assert len(entries) == 14
    assert {(entry["table"], entry["reason"]) for entry in entries} == {("item", UNLISTED)}
    assert node.rows("SELECT * FROM other") == [(1, "goes on")]
    assert node.rows("SELECT * FROM item") == []
    wait_told(lambda: node.status()["state"] == "in_sync", node.status, 20)
    assert node.status()["quarantined"] == len(entries)
    wait_told(lambda: primary.status()["nodes"][0]["quarantined"] == len(entries), primary.status, 20)
    assert node.command("quarantine", "retry").returncode == 1
    list_here(node, "other\nitem\n")
    primary.execute("UPDATE item SET name = 'while it heals' WHERE id = 6")
    wait_quarantined(node, 0)
    cluster.wait_equal()
    (told,) = node.status()["warnings"]
    assert "item is listed and not captured yet" in told
    assert node.command("install").returncode == 0
    assert node.faults() == []


def test_a_table_that_is_taken_from_a_secondary_s_list_waits_until_it_is_back(cluster: Cluster) -> None:
    """TRAPS 29: the service runs on; rows stay as they were; with the service stopped the command applies them."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    list_here(node, "item\nother\n")
    wait_told(lambda: '"tables": 2, "event": "lists_read"' in node.log, lambda: node.log[-2000:], 20)
    primary.execute("INSERT INTO item VALUES (1, 'one')")
    cluster.wait_equal()
    list_here(node, "other\n")
    wait_told(lambda: '"tables": 1, "event": "lists_read"' in node.log, lambda: node.log[-2000:], 20)
    primary.execute("UPDATE item SET name = 'uno'", "INSERT INTO item VALUES (2, 'two')")
    primary.execute("DELETE FROM item WHERE id = 2")
    wait_arrived(cluster)
    assert {entry["reason"] for entry in listed(node)} == {UNLISTED}
    assert node.rows("SELECT * FROM item") == [(1, "one")]
    assert node.stop() == 0
    assert node.command("quarantine", "retry").returncode == 1
    list_here(node, "item\nother\n")
    done = node.command("quarantine", "retry")
    assert done.returncode == 0, done.stdout + done.stderr
    node.start()
    cluster.wait_equal()
    assert node.rows("SELECT * FROM item") == [(1, "uno")]


KEYLESS = {
    "no key": "CREATE TABLE keyless (a BIGINT, b BIGINT)",
    "unique key": "CREATE TABLE keyless (a BIGINT NOT NULL UNIQUE, b BIGINT)",
}
LINES = {"named": "keyless", "glob": "key*", "all": "*"}


@pytest.fixture
def node(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Node:
    """With capture installed and no service."""
    made = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables="item\nother\n", nodes=("st1",)
    )
    return made.primary


@pytest.mark.parametrize("create", KEYLESS.values(), ids=KEYLESS)
def test_a_table_without_a_primary_key_is_refused_by_name(node: Node, create: str) -> None:
    """TRAPS 4, INTERFACE "The lists": exit 2, FILE:LINE, by a glob too; what was installed stands; a key is the remedy."""
    node.execute(create)
    path = node.home / "conf/sync_tables.conf"
    standing = node.rows("SELECT table_name, standing FROM stsync_captured ORDER BY table_name")
    for line in LINES.values():
        list_here(node, f"item\n# more\n{line}\n")
        place = f"{path}:3: table keyless has no primary key"
        for command in (["install"], ["install", "--dry-run"], ["run"]):
            expect(node.command(*command), 2, f"stsync: {place}", "give it one", "list")
        assert any(place in one for one in node.status()["warnings"])
        assert node.rows("SELECT table_name, standing FROM stsync_captured ORDER BY table_name") == standing
        node.execute("INSERT INTO other SELECT count(*), 'captured' FROM other")
    assert node.status()["outbox"] == len(LINES)
    if node.database.dialect.name == "sqlite":
        node.execute("DROP TABLE keyless", "CREATE TABLE keyless (a BIGINT PRIMARY KEY, b BIGINT)")
    else:
        node.execute("ALTER TABLE keyless ADD PRIMARY KEY (a)")
    assert node.command("install").returncode == 0
    assert node.faults() == []
    node.execute("INSERT INTO keyless VALUES (1, 2)")
    assert node.status()["outbox"] == len(LINES) + 1
    node.close()
