"""A table that is dropped while services run: what the list has of the others goes on (TRAPS 6)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.live_lists import LiveLists
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, make_cluster
from tests.pipeline import Pipeline

CONF = "CREATE TABLE conf_a (id BIGINT PRIMARY KEY, note VARCHAR(40), body VARCHAR(40))"
OLD = "CREATE TABLE conf_old (id BIGINT PRIMARY KEY, note VARCHAR(40) NOT NULL)"
NewCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster(tmp_path: Path, new_database: NewDatabase) -> Iterator[NewCluster]:
    """Makes a primary and a secondary with these tables, capture installed, and no service."""
    made: list[Cluster] = []

    def make(kind: str, tables: str, *schema: str) -> Cluster:
        made.append(
            make_cluster(tmp_path / "c", kind, NO_BROKER, new_database, schema=schema, tables=tables, nodes=("st1", "st2"))
        )
        return made[-1]

    yield make
    for cluster in made:
        for node in cluster.nodes.values():
            node.close()


def list_everywhere(cluster: Cluster, tables: str) -> None:
    for node in cluster.nodes.values():
        (node.home / "conf/sync_tables.conf").write_text(tables)


def goes_on(pipeline: Pipeline, table: str, *statements: str) -> None:
    """What the services have read by now, which know of the tables that are gone, is enough to capture and to apply these."""
    for node in pipeline.cluster.nodes.values():
        assert node.faults() == []
    pipeline.primary.execute(*statements)
    with capture_logs() as told:
        pipeline.move()
    assert pipeline.secondary.rows("SELECT count(*) FROM stsync_quarantine") == [(0,)]
    assert pipeline.cluster.differences() == []
    assert len(pipeline.secondary.rows(f"SELECT * FROM {table}")) == len(statements)
    assert [one for one in told if one["event"] == "lists_faulty"] == []
    pipeline.close()


def test_an_option_that_a_dropped_table_could_not_have_is_no_fault_of_the_list(
    new_cluster: NewCluster, database_kind: str
) -> None:
    """TRAPS 6: a glob meets the tables that there are."""
    cluster = new_cluster(database_kind, "conf_*\n", CONF, OLD)
    pipeline = Pipeline(cluster)
    cluster.on_all("DROP TABLE conf_old")
    list_everywhere(cluster, "conf_* exclude=note\n")
    cluster.install()
    goes_on(pipeline, "conf_a", "INSERT INTO conf_a VALUES (1, NULL, 'b')", "INSERT INTO conf_a VALUES (2, NULL, 'c')")


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_parent_that_was_dropped_with_its_child_is_not_asked_for(new_cluster: NewCluster, database_kind: str) -> None:
    """TRAPS 2, 6: what a foreign key of a table that is gone did concerns nobody."""
    cluster = new_cluster(
        database_kind,
        "parent\nkid_*\n",
        "CREATE TABLE parent (id BIGINT PRIMARY KEY)",
        "CREATE TABLE kid_a (id BIGINT PRIMARY KEY)",
        "CREATE TABLE kid_b (id BIGINT PRIMARY KEY, p BIGINT, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE)",
    )
    pipeline = Pipeline(cluster)
    cluster.on_all("DROP TABLE kid_b", "DROP TABLE parent")
    list_everywhere(cluster, "kid_*\n")
    cluster.install()
    goes_on(pipeline, "kid_a", "INSERT INTO kid_a VALUES (1)")


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_table_that_is_made_anew_in_another_spelling_is_the_same(new_cluster: NewCluster, database_kind: str) -> None:
    """TRAPS 6: SQLite's names have no case; what is captured of it now bears the new one."""
    cluster = new_cluster(database_kind, "Item\n", "CREATE TABLE Item (id BIGINT PRIMARY KEY, note TEXT)")
    pipeline = Pipeline(cluster)
    cluster.on_all("DROP TABLE Item", "CREATE TABLE item (id BIGINT PRIMARY KEY, note TEXT)")
    cluster.install()
    goes_on(pipeline, "item", "INSERT INTO item VALUES (1, 'x')", "INSERT INTO item VALUES (2, 'y')")


def test_after_install_a_dropped_table_is_listed_no_more(new_cluster: NewCluster, database_kind: str) -> None:
    """TRAPS 6: nobody is told to run `install` again for its sake."""
    cluster = new_cluster(database_kind, "conf_*\n", CONF, OLD)
    node = cluster.primary
    lists = LiveLists(node.database, node.settings)
    lists.load()
    node.execute("DROP TABLE conf_old")
    cluster.install()
    with capture_logs() as told:
        assert lists.reread()
        assert list(lists.tables) == ["conf_a"]
        list_everywhere(cluster, "conf_*  # another comment\n")
        lists.refresh()
    assert [one["event"] for one in told] == ["lists_read"]
    assert list(lists.tables) == ["conf_a"]


def test_a_named_table_that_is_missing_keeps_no_other_from_being_read(new_cluster: NewCluster, database_kind: str) -> None:
    """TRAPS 6, 29: its changes wait for its return, under its name; the others' columns are as they are by now."""
    cluster = new_cluster(database_kind, "conf_old\nconf_a\n", CONF, OLD)
    node = cluster.secondaries[0]
    lists = LiveLists(node.database, node.settings)
    lists.load()
    node.execute("DROP TABLE conf_old", "ALTER TABLE conf_a ADD COLUMN extra VARCHAR(40)")
    assert lists.reread()
    assert [column.name for column in lists.tables["conf_a"].columns] == ["id", "note", "body", "extra"]
    assert [column.name for column in lists.tables["conf_old"].columns] == ["id", "note"]
