"""A secondary whose table is another one: its changes wait, nothing is invented, and everything else goes on (TRAPS 6, 29)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

SCHEMA = ("CREATE TABLE other (id BIGINT PRIMARY KEY)",)


def table(key: str) -> str:
    return f"CREATE TABLE t (a BIGINT NOT NULL, b BIGINT NOT NULL, c BIGINT, PRIMARY KEY ({key}))"


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase, keys: tuple[str, str]) -> Iterator[Pipeline]:
    """Primary and secondary whose keys differ."""
    schema, nodes = (*SCHEMA, table(keys[0])), ("st1", "st2")
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=schema, tables="t\nother\n", nodes=nodes
    )
    secondary = cluster.nodes["st2"]
    secondary.execute("DROP TABLE t", table(keys[1]))
    assert secondary.command("install").returncode == 0
    found = Pipeline(cluster)
    yield found
    found.close()


@pytest.mark.parametrize("keys", [("a", "a, b"), ("a, b", "a"), ("a, b", "b, a")], ids=" there, here ".join)
def test_a_table_with_another_key_takes_nothing(pipeline: Pipeline) -> None:
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute("INSERT INTO t VALUES (1, 2, 9), (2, 3, 9)")
    pipeline.move()
    for statement in (
        "UPDATE t SET c = 8 WHERE a = 1",
        "UPDATE t SET a = 5, b = 6 WHERE a = 1",
        "DELETE FROM t WHERE a = 2",
    ):
        primary.execute(statement, "INSERT INTO other SELECT count(*) + 1 FROM other")
        pipeline.move()
    assert secondary.rows("SELECT * FROM t") == []
    assert secondary.rows("SELECT max(id) FROM other") == [(3,)]
    reasons = secondary.rows("SELECT reason FROM stsync_quarantine")
    assert len(reasons) >= 3
    assert all("the schemas differ" in reason for (reason,) in reasons)


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("keys", [("a", "a")], ids=["same"])
def test_a_value_that_does_not_fit_is_not_shown(pipeline: Pipeline) -> None:
    """STYLE 13: values of rows may be secret; reasons stand in `status` and in logs."""
    primary, secondary = pipeline.primary, pipeline.secondary
    secondary.execute("DROP TABLE t", table("a").replace("c BIGINT", "c INT"))
    pipeline.lists.reread()
    primary.execute("INSERT INTO t VALUES (1, 2, 424242424242)")
    pipeline.move()
    ((reason,),) = secondary.rows("SELECT reason FROM stsync_quarantine")
    assert "out of range" in reason.lower()
    assert "4242" not in reason


@pytest.mark.parametrize("keys", [("a", "a")], ids=["same"])
def test_a_key_in_several_spellings_is_one_row(pipeline: Pipeline, database_kind: str) -> None:
    """INTERFACE, the outbox contract: a program may write a key in any form that its type reads; the last change wins."""
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute("INSERT INTO t VALUES (17, 1, 0)")
    pipeline.move()
    spellings = ["17", '"17"', "17"] if database_kind == "sqlite" else ['"17"', '"017"', "17"]
    for value, key in enumerate(spellings, 1):
        primary.execute(
            "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json) VALUES ('t', 'U', '[\"a\",\"b\",\"c\"]', :rows)",
            rows=f"[{key},1,{value}]",
        )
    pipeline.move()
    assert secondary.rows("SELECT * FROM t") == [(17, 1, 3)]
