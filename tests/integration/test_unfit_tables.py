"""Tables that cannot keep what was committed, or keep what was not, are refused by name, on every node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, make_cluster

SCHEMA = ("CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(40))",)


@pytest.fixture
def cluster(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Cluster]:
    """A primary and a secondary with capture installed and no service."""
    nodes = ("st1", "st2")
    made = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables="unit\n", nodes=nodes)
    yield made
    for node in made.nodes.values():
        node.close()


def refused(cluster: Cluster, spoil: str, *words: str, mend: str) -> None:
    """Once spoiled, `install` refuses and `status` warns, with place, table and remedy; mended, all is well."""
    for node in cluster.nodes.values():
        node.execute(spoil)
        done = node.command("install")
        assert done.returncode == 2, done.stdout + done.stderr
        (told,) = node.status()["warnings"]
        for word in ("sync_tables.conf:1: table unit cannot be captured", *words):
            assert word in done.stderr
            assert word in told
        node.execute(mend)
        assert node.command("install").returncode == 0
        assert node.faults() == []


@pytest.mark.parametrize("database_kind", ["mariadb"])
@pytest.mark.parametrize("engine", ["MyISAM", "MEMORY"])
def test_a_table_without_transactions_is_refused(cluster: Cluster, engine: str) -> None:
    """TRAPS 1, 7: what is rolled back stays in it, and is not in the outbox; a secondary could not keep data and position together."""
    mend = "ALTER TABLE unit ENGINE = InnoDB"
    refused(cluster, f"ALTER TABLE unit ENGINE = {engine}", engine, "no transactions", mend, mend=mend)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_an_unlogged_table_is_refused(cluster: Cluster) -> None:
    """TRAPS 7: a crash of the server empties it, and the position stays."""
    mend = "ALTER TABLE unit SET LOGGED"
    refused(cluster, "ALTER TABLE unit SET UNLOGGED", "UNLOGGED", "crash", mend, mend=mend)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_computed_key_is_refused(cluster: Cluster) -> None:
    """TRAPS 4: what is computed does not travel, and so nothing would tell one row from another."""
    computed = "ADD COLUMN a BIGINT, ADD COLUMN id BIGINT GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY"
    for node in cluster.nodes.values():
        node.execute(f"ALTER TABLE unit DROP COLUMN id CASCADE, {computed}")
        done = node.command("install")
        assert done.returncode == 2
        assert "sync_tables.conf:1: table unit cannot be captured" in done.stderr
        assert "computed column in its primary key" in done.stderr


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_table_whose_rows_are_hidden_from_their_owner_is_refused(cluster: Cluster) -> None:
    """A secondary could neither see nor write them, and would take its database for one that is away."""
    spoil = "ALTER TABLE unit ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
    mend = "ALTER TABLE unit DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"
    refused(cluster, spoil, "ROW LEVEL SECURITY", "BYPASSRLS", mend=mend)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_key_that_cannot_be_compared_is_refused(cluster: Cluster) -> None:
    """The operators of a type stand in its schema, and where that is not looked into every statement of a program would fail."""
    for node in cluster.nodes.values():
        node.execute("CREATE SCHEMA ext", "CREATE EXTENSION ltree SCHEMA ext")
        node.execute("ALTER TABLE unit DROP COLUMN id CASCADE, ADD COLUMN id ext.ltree PRIMARY KEY")
        done = node.command("install")
        assert done.returncode == 2
        assert "sync_tables.conf:1: table unit cannot be captured" in done.stderr
        assert "SET search_path" in done.stderr
        node.execute("ALTER ROLE CURRENT_USER SET search_path = public, ext")
        try:
            assert node.command("install").returncode == 0
            node.execute("INSERT INTO unit VALUES ('one', 'a.b')", "UPDATE unit SET name = 'two'", "DELETE FROM unit")
        finally:
            node.execute("ALTER ROLE CURRENT_USER RESET search_path")
