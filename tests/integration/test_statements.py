"""Whatever statement a program changes rows with, the secondary has the same rows afterwards: those of one database as of all."""

import io
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from common.dialects import postgresql_writer
from consumer import replay
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster
from tests.pipeline import Pipeline

ROWS = (
    "INSERT INTO unit VALUES (1, 'one', NULL), (2, 'two', 1), (3, 'three', 1)",
    "INSERT INTO account VALUES (1, 'a', 2, 'n', 'x'), (2, 'b', 2, NULL, 'y'), (3, 'c', 3, '', NULL)",
    "INSERT INTO login VALUES (1, 'L', 'd'), (2, 'L', 'e'), (2, 'M', NULL), (3, 'L', '')",
    "INSERT INTO param VALUES ('P', '', 'here', 1), ('P', 'x', 'there', 0), ('Q', 'x', 'both', 0)",
    "INSERT INTO audit VALUES (1, 'unlisted')",
)
EVERYWHERE = {
    "insert from select": [
        "INSERT INTO account SELECT id + 10, CASE id WHEN 1 THEN 'p' ELSE 'q' END, unit_id, note, NULL FROM account WHERE id < 3"
    ],
    "a whole table": ["DELETE FROM login"],
    "a whole table changes": ["UPDATE param SET islocal = 1 - islocal, val = 'turned'"],
    "by subquery": ["UPDATE login SET digest = (SELECT note FROM account WHERE id = account_id) WHERE account_id IN (1, 3)"],
    "again and again": [f"UPDATE account SET note = 'turn {turn}' WHERE id <> {turn % 4}" for turn in range(30)],
    "there and back": ["UPDATE account SET name = 'z' WHERE id = 1", "UPDATE account SET name = 'a' WHERE id = 1"],
    "keys move on": [f"UPDATE login SET account_id = {at}, name = 'moved' WHERE account_id = 1" for at in (2, 3)],
}
MARIADB = {
    "replace": ["REPLACE INTO account VALUES (2, 'bb', 3, 'by its key', 'z'), (9, 'c', 1, 'by its name', NULL)"],
    "replace of what two rows hold": ["REPLACE INTO account VALUES (1, 'c', 1, 'for both', NULL)"],
    "replace set": ["REPLACE INTO param SET name = 'P', node = '', val = 'not local now'"],
    "replace delayed by a select": ["REPLACE INTO login SELECT id, 'L', note FROM account"],
    "on duplicate key": [
        "INSERT INTO account VALUES (1, 'new', 1, 'dup', NULL), (7, 'b', 1, 'by name', NULL), (8, 'h', 1, 'new', NULL)"
        " ON DUPLICATE KEY UPDATE note = VALUE(note), name = concat(name, '+')"
    ],
    "on duplicate key, another key": [
        "INSERT INTO login VALUES (1, 'L', 'x') ON DUPLICATE KEY UPDATE account_id = 2, name = 'N'"
    ],
    "insert ignore": ["INSERT IGNORE INTO account VALUES (1, 'q', 1, 'no', NULL), (4, 'a', 1, 'no', NULL), (5, 'e', 1, 'yes', NULL)"],
    "update ignore": ["UPDATE IGNORE account SET name = 'c', note = 'u'"],
    "update ignore, what was in the way goes": [
        "UPDATE IGNORE account SET name = 'c', note = 'u'",
        "DELETE FROM account WHERE id = 3",
    ],
    "update ignore of keys": ["UPDATE IGNORE login SET account_id = 2, digest = 'k'", "DELETE FROM login WHERE name = 'L'"],
    "update ignore of keys, some go": ["UPDATE IGNORE login SET account_id = MOD(account_id, 3) + 1, digest = 'k'"],
    "update ignore without a parent": ["UPDATE IGNORE account SET unit_id = id + 1, note = 'p'"],
    "update ignore over the row filter": [
        "INSERT INTO param VALUES ('R', 'y', 'b', 1)", "UPDATE IGNORE param SET islocal = 1 - islocal, node = 'x', name = 'Q'"
    ],
    "update ignore of two tables": ["UPDATE IGNORE account JOIN unit ON unit.id = unit_id SET account.note = 'i', unit.name = 'two',"
        " account.name = IF(account.id = 1, 'b', account.name)"
    ],
    "on duplicate key, ignored": [
        "INSERT IGNORE INTO account VALUES (1, 'q', 1, 'd', NULL), (8, 'h', 1, 'new', NULL)"
        " ON DUPLICATE KEY UPDATE name = 'c', note = 'i'"
    ],
    "multi-table update": [
        "UPDATE account JOIN login ON login.account_id = account.id JOIN unit ON unit.id = account.unit_id"
        " SET account.note = 'joined', login.digest = account.note, unit.name = concat(unit.name, '+')"
    ],
    "multi-table delete": [
        "DELETE login, param FROM login JOIN account ON account.id = login.account_id JOIN param WHERE account.name = 'b'"
    ],
    "multi-table delete with a parent": ["DELETE account, login FROM account JOIN login ON login.account_id = account.id"],
    "in an order, so many": [
        "DELETE FROM login ORDER BY digest DESC LIMIT 2", "UPDATE account SET note = 'first' ORDER BY name DESC LIMIT 1"
    ],
    "keys moved up": ["UPDATE login SET account_id = account_id + 0, name = concat(name, '1') ORDER BY name DESC"],
    "a default, given": ["INSERT INTO param (name, node) VALUES ('D', 'd')", "UPDATE param SET val = DEFAULT WHERE name = 'Q'"],
    "returning": ["INSERT INTO login VALUES (1, 'R', 'r') RETURNING name", "DELETE FROM login WHERE name = 'M' RETURNING digest"],
    "a compound statement": [
        "BEGIN NOT ATOMIC DECLARE n INT DEFAULT 20; WHILE n < 25 DO INSERT INTO unit VALUES (n, concat('u', n), 1);"
        " SET n = n + 1; END WHILE; DELETE FROM unit WHERE id = 22; END"
    ],
    "a prepared statement": ["EXECUTE IMMEDIATE 'UPDATE account SET note = ? WHERE id = ?' USING 'prepared', 2"],
}  # fmt: skip
POSTGRESQL = {
    "on conflict": [
        "INSERT INTO account VALUES (1, 'k', 1, 'up', NULL), (6, 'f', 1, 'new', NULL)"
        " ON CONFLICT (id) DO UPDATE SET note = excluded.note, name = excluded.name"
    ],
    "on conflict by a name": ["INSERT INTO account VALUES (9, 'b', 1) ON CONFLICT (name) DO UPDATE SET id = 19"],
    "on conflict do nothing": [
        "INSERT INTO account VALUES (1, 'k'), (6, 'b'), (7, 'g') ON CONFLICT DO NOTHING",
    ],
    "merge": [
        "MERGE INTO account AS a USING (VALUES (1, 'one'), (2, 'gone'), (8, 'new')) AS s (id, note) ON a.id = s.id"
        " WHEN MATCHED AND s.note = 'gone' THEN DELETE WHEN MATCHED THEN UPDATE SET note = s.note"
        " WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.note, 1, s.note, NULL)"
    ],
    "a writable with": [
        "WITH gone AS (DELETE FROM login WHERE account_id = 2 RETURNING *), kept AS (INSERT INTO login"
        " SELECT 1, name || account_id, digest FROM gone RETURNING name)"
        " UPDATE account SET note = (SELECT string_agg(name, ',') FROM kept) WHERE id = 2"
    ],
    "update from": ["UPDATE account AS a SET note = u.name, unit_id = u.parent FROM unit AS u WHERE u.id = a.unit_id"],
    "delete using": ["DELETE FROM login USING account WHERE account.id = login.account_id AND account.name = 'b'"],
    "truncate of many": ["TRUNCATE login, account", "INSERT INTO account VALUES (1, 'afterwards', 1)"],
    "truncate cascade": ["TRUNCATE account CASCADE"],
    "a block": [
        "DO $$ BEGIN FOR n IN 20..24 LOOP INSERT INTO unit VALUES (n, 'u' || n, 1); BEGIN"
        " UPDATE unit SET name = 'tried' WHERE id = n; EXCEPTION WHEN unique_violation THEN"
        " DELETE FROM unit WHERE id = n - 1; END; END LOOP; END $$"
    ],
    "constraints deferred": ["SET CONSTRAINTS ALL DEFERRED", "UPDATE unit SET name = name || '!'"],
    "keys moved up": ["UPDATE login SET name = name || '1'", "UPDATE unit SET parent = 3 WHERE id = 2"],
}  # fmt: skip
SQLITE = {
    "upsert": [
        "INSERT INTO account VALUES (1, 'k', 1, 'up', NULL), (6, 'f', 1, 'new', NULL)"
        " ON CONFLICT (id) DO UPDATE SET note = excluded.note, name = excluded.name"
        " ON CONFLICT (name) DO UPDATE SET note = 'by name'"
    ],
    "on conflict do nothing": ["INSERT INTO account (id, name) VALUES (1, 'k'), (6, 'b'), (7, 'g') ON CONFLICT DO NOTHING"],
    "or ignore": ["UPDATE OR IGNORE account SET name = 'c', note = 'u'", "INSERT OR IGNORE INTO unit VALUES (1, 'q', 1), (4, 'd', 1)"],
    "or replace": ["INSERT OR REPLACE INTO login SELECT id, 'L', note FROM account", "REPLACE INTO param VALUES ('Q', 'x', 'r', 1)"],
    "or replace of what two rows hold": ["REPLACE INTO account VALUES (1, 'c', 1, 'for both', NULL)"],
    "update from": ["UPDATE account SET note = u.name FROM unit AS u WHERE u.id = account.unit_id"],
    "with": [
        "WITH RECURSIVE n (i) AS (SELECT 20 UNION ALL SELECT i + 1 FROM n WHERE i < 24)"
        " INSERT INTO unit SELECT i, 'u' || i, 1 FROM n",
        "DELETE FROM login WHERE account_id IN (SELECT id FROM account WHERE name = 'b') RETURNING name",
    ],
    "by rowid": ["UPDATE account SET note = 'row' WHERE rowid = 2", "DELETE FROM login WHERE _rowid_ < 3"],
    "a rowid moves": ["UPDATE login SET rowid = rowid + 100, digest = 'far' WHERE account_id = 2"],
}  # fmt: skip
OWN = {"sqlite": SQLITE, "postgresql": POSTGRESQL, "mariadb": MARIADB}


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """With the rows in place."""
    pipeline.primary.execute(*ROWS)
    pipeline.move()
    assert pipeline.wrong() == []
    return pipeline


def everything(node: Node) -> list[list[tuple[object, ...]]]:
    return [node.rows(f"SELECT * FROM {table}") for table in ("unit", "account", "login", "param")]


def begin_anew(pipeline: Pipeline) -> None:
    pipeline.primary.execute(
        "DELETE FROM login",
        "DELETE FROM account",
        "UPDATE unit SET parent = NULL",
        "DELETE FROM unit",
        "DELETE FROM param",
        *ROWS[:-1],
    )
    pipeline.move()


def do(pipeline: Pipeline, statements: list[str]) -> None:
    with pipeline.primary.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize("way", ["one transaction", "each", "as large ones"])
def test_every_statement_arrives(pipeline: Pipeline, database_kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 2, 28. A large change set is replayed as it came, and its rows are copied in."""
    if way == "as large ones":
        monkeypatch.setattr(replay, "FAST_BYTES", 0)
        monkeypatch.setattr(postgresql_writer, "MANY", 0)
    wrong: dict[str, object] = {}
    for name, statements in (EVERYWHERE | OWN[database_kind]).items():
        begin_anew(pipeline)
        before = everything(pipeline.primary)
        for some in [[statement] for statement in statements] if way == "each" else [statements]:
            do(pipeline, some)
            if way == "each":
                pipeline.move()
        pipeline.move()
        if everything(pipeline.primary) == before and name != "there and back":
            wrong[name] = "it changed nothing"
        elif found := pipeline.wrong():
            wrong[name] = found
            pipeline.secondary.execute("DELETE FROM stsync_quarantine")
    assert wrong == {}


def load_data(node: Node, path: Path, mode: str) -> None:
    engine = create_engine(node.url, connect_args={"local_infile": True}, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"LOAD DATA LOCAL INFILE '{path}' {mode} INTO TABLE account (id, name, unit_id, note)")


@pytest.mark.parametrize("database_kind", ["mariadb"])
@pytest.mark.parametrize("mode", ["REPLACE", "IGNORE"])
def test_rows_loaded_from_a_file_arrive(pipeline: Pipeline, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "rows"
    path.write_text("".join(f"{n}\tname {n}\t1\tloaded\n" for n in range(1, 3000)))
    load_data(pipeline.primary, path, mode)
    assert len(pipeline.primary.rows("SELECT 1 FROM account WHERE note = 'loaded'")) > 2900
    pipeline.move()
    assert pipeline.wrong() == []


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_rows_copied_in_arrive(pipeline: Pipeline) -> None:
    rows = io.StringIO("".join(f"{n}\tname {n}\t1\tcopied\n" for n in range(10, 3000)))
    raw = pipeline.primary.engine.raw_connection()
    driver: Any = raw.driver_connection
    with driver.cursor() as cursor, cursor.copy("COPY account (id, name, unit_id, note) FROM STDIN") as copy:
        copy.write(rows.read())
    driver.commit()
    raw.close()
    assert len(pipeline.primary.rows("SELECT 1 FROM account WHERE note = 'copied'")) == 2990
    pipeline.move()
    assert pipeline.wrong() == []


LOOPS = {
    "postgresql": [
        "CREATE TABLE grp (id BIGINT PRIMARY KEY, owner BIGINT, note VARCHAR(20))",
        "CREATE TABLE usr (id BIGINT PRIMARY KEY, grp BIGINT NOT NULL REFERENCES grp (id) ON DELETE CASCADE ON UPDATE CASCADE,"
        " boss BIGINT REFERENCES usr (id) ON DELETE CASCADE ON UPDATE CASCADE)",
        "ALTER TABLE grp ADD FOREIGN KEY (owner) REFERENCES usr (id) ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE",
    ],
    "mariadb": [
        "CREATE TABLE grp (id BIGINT PRIMARY KEY, owner BIGINT, note VARCHAR(20))",
        "CREATE TABLE usr (id BIGINT PRIMARY KEY, grp BIGINT NOT NULL, boss BIGINT,"
        " FOREIGN KEY (grp) REFERENCES grp (id) ON DELETE CASCADE ON UPDATE CASCADE,"
        " FOREIGN KEY (boss) REFERENCES usr (id) ON DELETE CASCADE)",
        "ALTER TABLE grp ADD FOREIGN KEY (owner) REFERENCES usr (id) ON DELETE SET NULL",
    ],
    "sqlite": [
        "CREATE TABLE grp (id BIGINT PRIMARY KEY NOT NULL, owner BIGINT REFERENCES usr (id) ON DELETE SET NULL ON UPDATE CASCADE,"
        " note VARCHAR(20))",
        "CREATE TABLE usr (id BIGINT PRIMARY KEY NOT NULL, grp BIGINT NOT NULL REFERENCES grp (id) ON DELETE CASCADE"
        " ON UPDATE CASCADE, boss BIGINT REFERENCES usr (id) ON DELETE CASCADE ON UPDATE CASCADE)",
    ],
}
ROUND = {
    "a group goes with its users, and its owner": ["DELETE FROM grp WHERE id = 1"],
    "a chain of users goes": ["DELETE FROM usr WHERE id = 10"],
    "everything goes": ["DELETE FROM grp"],
    "an owner moves": ["UPDATE usr SET grp = 2 WHERE id = 10", "DELETE FROM grp WHERE id = 1"],
    "a group gets another key": ["UPDATE grp SET id = 7, note = 'seven' WHERE id = 1", "UPDATE usr SET boss = 10 WHERE id = 20"],
    "it goes and comes again": [
        "DELETE FROM grp WHERE id = 1", "INSERT INTO grp VALUES (1, NULL, 'new')", "INSERT INTO usr VALUES (10, 1, NULL)",
        "UPDATE grp SET owner = 10 WHERE id = 1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("tables", ["grp\nusr\n", "usr\ngrp\n"], ids=["groups first", "users first"])
def test_references_in_a_circle_and_to_the_own_table_arrive(
    tmp_path: Path, new_database: NewDatabase, database_kind: str, tables: str
) -> None:
    """TRAPS 2, 28: in whatever order the tables are listed; cascades that come round are done once."""
    cluster = make_cluster(
        tmp_path / "c",
        database_kind,
        NO_BROKER,
        new_database,
        schema=LOOPS[database_kind],
        tables=tables,
        nodes=("st1", "st2"),
    )
    pipeline = Pipeline(cluster)
    wrong = {}
    for name, statements in ROUND.items():
        pipeline.primary.execute(
            "DELETE FROM grp",
            "INSERT INTO grp VALUES (1, NULL, 'one'), (2, NULL, 'two')",
            "INSERT INTO usr VALUES (10, 1, NULL), (11, 1, 10), (12, 2, 11), (20, 2, NULL), (21, 2, 21)",
            "UPDATE grp SET owner = id * 10",
        )
        pipeline.move()
        assert pipeline.wrong() == []
        before = pipeline.primary.rows("SELECT * FROM grp") + pipeline.primary.rows("SELECT * FROM usr")
        pipeline.primary.execute(*statements)
        assert pipeline.primary.rows("SELECT * FROM grp") + pipeline.primary.rows("SELECT * FROM usr") != before
        pipeline.move()
        wrong[name] = pipeline.wrong()
    pipeline.close()
    assert not any(wrong.values()), wrong
