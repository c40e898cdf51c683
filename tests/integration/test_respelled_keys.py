"""Texts that a collation takes for the same: to write one otherwise is a change (TRAPS 30), and what waits for a row under one
spelling of its key is overtaken by what comes under another (TRAPS 29)."""

from typing import Any

import pytest

from consumer import retries
from consumer.replay import Replayer
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


@pytest.mark.parametrize("other", ["'o'", "'ü'"], ids=["ascii", "umlaut"])
@pytest.mark.parametrize("kind", ["ENUM", "SET"])
def test_members_that_a_collation_tells_apart_are_rows_apart(
    new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, kind: str, other: str
) -> None:
    key = f"name {kind}('a', 'A', 'b') COLLATE utf8mb4_bin, other VARCHAR(9) COLLATE utf8mb4_general_ci"
    pipeline = new_pipeline("mariadb", f"CREATE TABLE t ({key}, {COLUMNS}, PRIMARY KEY (name, other))", tables="t\n")
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute(f"INSERT INTO t VALUES ('a', {other}, '1', 'p'), ('A', {other}, '1', 'q')")
    pipeline.move()
    secondary.execute(f"INSERT INTO t VALUES ('b', {other}, 'local', 'x')")
    for change in ("UPDATE t SET v = '2', u = 'x' WHERE name = 'a'", "UPDATE t SET v = '3', u = 'z' WHERE name = 'A'"):
        primary.execute(change)
        pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM t WHERE name = 'b'")
    assert pipeline.wrong() == []
    assert primary.rows("SELECT v FROM t ORDER BY v") == secondary.rows("SELECT v FROM t ORDER BY v") == [("2",), ("3",)]


@pytest.mark.parametrize(("collation", "old", "new"), [("lithuanian", "Jonis", "Jonys"), ("roman", "Iulius", "Julius")])
def test_letters_that_a_language_takes_for_the_same(
    new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, collation: str, old: str, new: str
) -> None:
    """The freed key is used anew, in another spelling."""
    key = f"VARCHAR(40) COLLATE utf8mb4_{collation}_ci"
    pipeline = new_pipeline("mariadb", f"CREATE TABLE t (name {key} PRIMARY KEY, {COLUMNS})", tables="t\n")
    pipeline.primary.execute(f"INSERT INTO t VALUES ('{old}', '1', 'p')")
    pipeline.move()
    pipeline.secondary.execute("INSERT INTO t VALUES ('other', 'local', 'x')")
    for change in (
        f"UPDATE t SET name = 'Beta', u = 'x' WHERE name = '{old}'",
        f"INSERT INTO t VALUES ('{new}', 'new', 'n')",
    ):
        pipeline.primary.execute(change)
        pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM t WHERE name = 'other'")
    assert pipeline.wrong() == []


def test_a_collation_that_changes_meanwhile_counts(new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "VARCHAR(40) COLLATE utf8mb4_nopad_bin NOT NULL"
    pipeline = new_pipeline("mariadb", f"CREATE TABLE t (name {key} PRIMARY KEY, {COLUMNS})", tables="t\n")
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute("INSERT INTO t VALUES ('Acme', '1', 'p')")
    pipeline.move()
    secondary.execute("INSERT INTO t VALUES ('other', 'local', 'x')")
    primary.execute("UPDATE t SET v = 'old', u = 'x' WHERE name = 'Acme'")
    pipeline.move()
    for node in (primary, secondary):
        node.execute("ALTER TABLE t MODIFY name VARCHAR(40) COLLATE utf8mb4_general_ci NOT NULL")
    pipeline.cluster.install()
    primary.execute("UPDATE t SET v = 'new', u = 'n' WHERE name = 'Acme'")
    pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM t WHERE name = 'other'")
    assert pipeline.wrong() == []
    assert secondary.rows("SELECT v, u FROM t") == [("new", "n")]


def test_an_identity_in_the_key_is_not_set(new_pipeline: MakePipeline) -> None:
    """PostgreSQL lets nobody set one that is always generated; a row that stands there already is taken all the same."""
    key = "id BIGINT GENERATED ALWAYS AS IDENTITY, name citext"
    schema = ("CREATE EXTENSION citext", f"CREATE TABLE t ({key}, v TEXT, PRIMARY KEY (id, name))")
    pipeline = new_pipeline("postgresql", *schema, tables="t\n")
    pipeline.secondary.execute("INSERT INTO t OVERRIDING SYSTEM VALUE VALUES (1, 'A', 'stale')")
    pipeline.primary.execute("INSERT INTO t (name, v) VALUES ('a', 'new')")
    pipeline.move()
    assert pipeline.wrong() == []


@pytest.mark.parametrize("where", ["", " where=\"v <> 'local'\""], ids=["all", "some"])
def test_only_what_is_spelled_otherwise_is_spelled_anew(new_pipeline: MakePipeline, database_kind: str, where: str) -> None:
    """A row that stands there in the very same spelling is written once."""
    pipeline = new_pipeline(database_kind, *SCHEMA[database_kind], tables=f"t{where}\n")
    pipeline.secondary.execute(
        "INSERT INTO t VALUES ('Acme', 'stale', '1')", "INSERT INTO t VALUES ('beta', 'stale', '2')",
        "INSERT INTO t VALUES ('GAMMA', 'stale', '3')",
    )  # fmt: skip
    writer = pipeline.applier_database.dialect.writer(pipeline.lists.present.tables["t"], ["name", "v", "u"])
    rows = ",\n".join(f'["{name}","new","{u}"]' for u, name in enumerate(("acme", "beta", "Gamma", "none"), 1))
    with pipeline.applier_database.open() as connection, connection.begin():
        cursor = connection.connection.cursor()
        assert writer.respell(cursor, rows) == 2
        assert writer.respell(cursor, rows) == 0
    assert sorted(pipeline.secondary.rows("SELECT name, v FROM t")) == [
        ("Gamma", "stale"),
        ("acme", "stale"),
        ("beta", "stale"),
    ]


def test_whatever_waits_the_database_is_asked_few_questions(
    new_pipeline: MakePipeline, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of keys of which nothing is known but by asking, and of key updates, of which each has two."""
    pipeline = new_pipeline(database_kind, *SCHEMA[database_kind], tables="t\n")
    primary, secondary = pipeline.primary, pipeline.secondary
    rows = ", ".join(f"('Müller {number}', '1', 'u{number}')" for number in range(200))
    primary.execute(f"INSERT INTO t VALUES {rows}")
    pipeline.move()
    secondary.execute(*(f"INSERT INTO t VALUES ('other {number}', 'local', 'x{number}')" for number in range(200)))
    for number in range(200):
        name = f"MÜLLER {number}" if number % 2 else f"Müller {number}"
        primary.execute(f"UPDATE t SET name = '{name}', u = 'x{number}' WHERE u = 'u{number}'")
    pipeline.move()
    assert secondary.rows("SELECT count(*) FROM stsync_quarantine") == [(200,)]
    asked = []
    plain = Replayer._numbered

    def counted(self: Replayer, *arguments: Any) -> Any:
        asked.append(len(arguments[-1]))
        return plain(self, *arguments)

    monkeypatch.setattr(Replayer, "_numbered", counted)
    monkeypatch.setattr(retries.Retries, "work", lambda *_: False)
    primary.execute("INSERT INTO t VALUES ('Muller', 'ü', 'ü')", "INSERT INTO t VALUES ('plain', 'p', 'p')")
    pipeline.move()
    assert secondary.rows("SELECT count(*) FROM t") == [(402,)]
    assert sum(asked) < 500
