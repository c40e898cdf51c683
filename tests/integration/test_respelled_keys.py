"""Texts that a collation takes for the same: to write one otherwise is a change (TRAPS 30), and what waits for a row under one
spelling of its key is overtaken by what comes under another (TRAPS 29)."""

import pytest

from tests.integration.conftest import MakePipeline
from tests.integration.test_silent_cascades import free
from tests.pipeline import Pipeline

COLUMNS = "v VARCHAR(40), u VARCHAR(40) UNIQUE"  # of collations that may be the same as the key's, or not
SCHEMA = {
    "sqlite": (f"CREATE TABLE t (name TEXT COLLATE NOCASE PRIMARY KEY, {COLUMNS})",),
    "mariadb": (f"CREATE TABLE t (name VARCHAR(40) COLLATE utf8mb4_general_ci PRIMARY KEY, {COLUMNS})",),
    "postgresql": (
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        'CREATE TABLE t (name VARCHAR(40) COLLATE "nocase" PRIMARY KEY, v VARCHAR(40) COLLATE "de-x-icu",'
        ' u VARCHAR(40) COLLATE "nocase" UNIQUE)',
    ),
}
# What the primary does while a row of the secondary's own holds the unique value `x`.
CHANGES: dict[str, tuple[str, ...]] = {
    "set by its new spelling": (
        "UPDATE t SET name = 'acme', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET v = 'new', u = 'y' WHERE name = 'acme'",
    ),
    "set before and after": (
        "UPDATE t SET v = 'old', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET name = 'acme' WHERE name = 'Acme'",
        "UPDATE t SET v = 'new', u = 'y' WHERE name = 'acme'",
    ),
    "spelled twice": (
        "UPDATE t SET v = 'old', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET name = 'acme' WHERE name = 'Acme'",
        "UPDATE t SET name = 'ACME' WHERE name = 'Acme'",
        "UPDATE t SET v = 'new', u = 'y' WHERE name = 'acme'",
    ),
    "spelled there and back": (
        "UPDATE t SET name = 'acme', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET name = 'Acme', u = 'y' WHERE name = 'Acme'",
    ),
    "deleted by its new spelling": (
        "UPDATE t SET v = 'old', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET name = 'acme' WHERE name = 'Acme'",
        "DELETE FROM t WHERE name = 'acme'",
    ),
    "given another name": (
        "UPDATE t SET name = 'acme', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET name = 'Beta', u = 'y' WHERE name = 'acme'",
    ),
    "another name, and then set": (
        "UPDATE t SET name = 'Beta', u = 'x' WHERE name = 'Acme'",
        "UPDATE t SET v = 'new', u = 'y' WHERE name = 'Beta'",
    ),
}


@pytest.fixture
def pipeline(new_pipeline: MakePipeline, database_kind: str) -> Pipeline:
    return new_pipeline(database_kind, *SCHEMA[database_kind], tables="t\n")


def test_another_spelling_is_a_change(pipeline: Pipeline) -> None:
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute("INSERT INTO t VALUES ('Acme', 'a', 'b')", "INSERT INTO t VALUES ('Beta', 'c', 'd')")
    pipeline.move()
    for change in (
        "UPDATE t SET name = 'acme' WHERE name = 'Acme'",
        "UPDATE t SET v = 'A' WHERE name = 'Acme'",
        "UPDATE t SET v = UPPER(v), u = UPPER(u)",
        "UPDATE t SET name = UPPER(name)",
    ):
        primary.execute(change)
        pipeline.move()
        assert secondary.rows("SELECT * FROM t ORDER BY name") == primary.rows("SELECT * FROM t ORDER BY name")
    assert pipeline.wrong() == []


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize("what", CHANGES)
def test_the_newest_stands_whatever_waited(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, what: str, together: bool
) -> None:
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute("INSERT INTO t VALUES ('Acme', '1', 'a')")
    pipeline.move()
    secondary.execute("INSERT INTO t VALUES ('other', 'local', 'x')")
    for change in CHANGES[what]:
        primary.execute(change)
        if not together:
            pipeline.move()
    pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM t WHERE name = 'other'")
    assert pipeline.wrong() == []
    assert secondary.rows("SELECT * FROM t") == primary.rows("SELECT * FROM t")


@pytest.mark.parametrize(
    ("kind", "stored", "given"),
    [
        ("BIGINT", "17", '"17"'),
        ("BIGINT", "17", '" +17 "'),
        ("BIGINT", "17", "17"),
        ("VARCHAR(40)", "'17'", "17"),
        ("VARCHAR(40)", "'017'", '"017"'),
    ],
)
def test_a_programs_own_spelling_of_a_key_is_the_databases(
    new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, kind: str, stored: str, given: str
) -> None:
    """README's own example writes a number as a text."""
    pipeline = new_pipeline("sqlite", f"CREATE TABLE t (id {kind} PRIMARY KEY, {COLUMNS})", tables="t\n")
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute(f"INSERT INTO t VALUES ({stored}, 'first', 'a')")
    pipeline.move()
    secondary.execute("INSERT INTO t VALUES (99, 'local', 'x')")
    primary.execute(
        "INSERT INTO stsync_replaying (id) VALUES (1)",
        f"UPDATE t SET v = 'old', u = 'x' WHERE id = {stored}",
        "DELETE FROM stsync_replaying",
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json)"
        f""" VALUES ('t', 'U', '["id", "v", "u"]', '[{given}, "old", "x"]')""",
    )
    pipeline.move()
    primary.execute(f"UPDATE t SET v = 'new', u = 'y' WHERE id = {stored}")
    pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM t WHERE v = 'local'")
    assert pipeline.wrong() == []
    assert secondary.rows("SELECT * FROM t") == primary.rows("SELECT * FROM t")
