"""What a program takes back within a transaction that goes on is never seen elsewhere; what it does instead, is."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from tests.harness import Node
from tests.pipeline import Pipeline

ROWS = (  # stand there before each case, with keys (K1 …) and words ('W…) of its own
    "INSERT INTO unit VALUES (K1, 'W1', NULL), (K2, 'W2', K1)",
    "INSERT INTO account VALUES (K1, 'W1', K1, 'note', 'x')",
    "INSERT INTO login VALUES (K1, 'W', 'd')",
    "INSERT INTO param VALUES ('W', 'in', 'v', 0), ('W', 'out', 'v', 1)",
)
# Statements of one transaction; `!`: it must fail, and the transaction goes on.
CASES: dict[str, Sequence[str]] = {
    "nested": (
        "SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'W3', K2)", "SAVEPOINT b", "INSERT INTO unit VALUES (K4, 'W4', K3)",
        "UPDATE unit SET name = 'Wb' WHERE id = K3", "SAVEPOINT c", "DELETE FROM login WHERE account_id = K1",
        "RELEASE SAVEPOINT c", "ROLLBACK TO SAVEPOINT b", "INSERT INTO unit VALUES (K5, 'W4', K3)", "RELEASE SAVEPOINT a", "COMMIT",
    ),
    "twice to the same": (
        "SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'W3', NULL)", "ROLLBACK TO SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'W4', K1)",
        "ROLLBACK TO SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'W5', K2)", "COMMIT",
    ),
    "released, all rolled back": (
        "SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'W3', NULL)", "DELETE FROM account WHERE id = K1", "RELEASE SAVEPOINT a",
        "ROLLBACK",
    ),
    "released into what is rolled back": (
        "SAVEPOINT a", "SAVEPOINT b", "INSERT INTO unit VALUES (K3, 'W3', NULL)", "UPDATE unit SET name = 'Wx' WHERE id = K2",
        "RELEASE SAVEPOINT b", "ROLLBACK TO SAVEPOINT a", "INSERT INTO unit VALUES (K3, 'Wx', K2)", "COMMIT",
    ),
    "update": (
        "UPDATE unit SET name = 'W0' WHERE id = K1", "SAVEPOINT a", "UPDATE unit SET name = 'Wx', parent = K2 WHERE id = K1",
        "ROLLBACK TO SAVEPOINT a", "UPDATE unit SET parent = K1 WHERE id = K1", "COMMIT",
    ),
    "delete": (
        "SAVEPOINT a", "DELETE FROM login WHERE account_id = K1", "DELETE FROM account WHERE id = K1", "ROLLBACK TO SAVEPOINT a",
        "UPDATE account SET note = 'kept' WHERE id = K1", "SAVEPOINT b", "DELETE FROM account WHERE id = K1",
        "ROLLBACK TO SAVEPOINT b", "COMMIT",
    ),
    "delete, insert again": (
        "DELETE FROM unit WHERE id = K2", "SAVEPOINT a", "INSERT INTO unit VALUES (K2, 'Wx', NULL)", "ROLLBACK TO SAVEPOINT a",
        "INSERT INTO unit VALUES (K2, 'Wy', K1)", "COMMIT",
    ),
    "key": (
        "SAVEPOINT a", "UPDATE account SET id = K7 WHERE id = K1", "ROLLBACK TO SAVEPOINT a",
        "UPDATE account SET id = K8 WHERE id = K1", "INSERT INTO account VALUES (K7, 'W7', K2, NULL, 'x')", "SAVEPOINT b",
        "UPDATE account SET id = K1 WHERE id = K7", "ROLLBACK TO SAVEPOINT b", "COMMIT",
    ),
    "row filter": (
        "SAVEPOINT a", "UPDATE param SET islocal = 1 - islocal WHERE name = 'W'", "ROLLBACK TO SAVEPOINT a",
        "UPDATE param SET val = 'w' WHERE name = 'W'", "SAVEPOINT b", "UPDATE param SET islocal = 1 WHERE name = 'W' AND node = 'in'",
        "RELEASE SAVEPOINT b", "SAVEPOINT c", "UPDATE param SET islocal = 0 WHERE name = 'W'", "ROLLBACK TO SAVEPOINT c",
        "UPDATE param SET islocal = 0, val = 'z' WHERE node = 'out' AND name = 'W'", "COMMIT",
    ),
    "a statement that fails midway": (
        "INSERT INTO unit VALUES (K3, 'W3', NULL)", "SAVEPOINT a",
        "!INSERT INTO unit VALUES (K4, 'W4', NULL), (K5, 'W5', NULL), (K1, 'W6', NULL), (K6, 'W7', NULL)", "ROLLBACK TO SAVEPOINT a",
        "!UPDATE unit SET name = 'W8' WHERE id BETWEEN K1 AND K9", "ROLLBACK TO SAVEPOINT a",
        "INSERT INTO unit VALUES (K5, 'W4', K3)", "COMMIT",
    ),
}  # fmt: skip
_MIDWAY = (
    "INSERT INTO unit VALUES (K3, 'W3', NULL)", "!INSERT INTO unit VALUES (K4, 'W4', NULL), (K5, 'W5', NULL), (K1, 'W6', NULL)",
    "!UPDATE unit SET name = 'W8' WHERE id BETWEEN K1 AND K9", "!DELETE FROM unit WHERE id BETWEEN K1 AND K9",
    "INSERT INTO unit VALUES (K5, 'W4', K3)", "COMMIT",
)  # fmt: skip
_REPLACE = (
    "REPLACE INTO param VALUES ('W', 'in', 'first', 0)", "SAVEPOINT a", "REPLACE INTO param VALUES ('W', 'in', 'second', 1)",
    "REPLACE INTO unit VALUES (K3, 'W2', NULL)", "ROLLBACK TO SAVEPOINT a", "UPDATE param SET val = 'third' WHERE name = 'W'",
    "REPLACE INTO login VALUES (K1, 'W', 'e')", "SAVEPOINT b", "REPLACE INTO param VALUES ('W', 'out', 'x', 0)",
    "ROLLBACK TO SAVEPOINT b", "REPLACE INTO unit VALUES (K4, 'W2', K1)", "COMMIT",
)  # fmt: skip
ONLY: dict[str, dict[str, Sequence[str]]] = {
    "sqlite": {
        "midway, without a savepoint": _MIDWAY,
        "or abort": tuple(one.replace("INSERT INTO", "INSERT OR ABORT INTO") for one in _MIDWAY),
        "or fail": (*(one.replace("INSERT INTO", "INSERT OR FAIL INTO") for one in _MIDWAY[:3]), "COMMIT"),
        "or rollback": (
            "INSERT INTO unit VALUES (K3, 'W3', NULL)",
            "!INSERT OR ROLLBACK INTO unit VALUES (K4, 'W4', NULL), (K1, 'W5', 1)",
        ),
        "replace": _REPLACE,
        "update or replace": (
            "SAVEPOINT a", "UPDATE OR REPLACE param SET node = 'out' WHERE name = 'W'", "ROLLBACK TO SAVEPOINT a",
            "UPDATE OR REPLACE param SET node = 'in', islocal = 0 WHERE name = 'W' AND node = 'out'", "COMMIT",
        ),
    },
    "mariadb": {"midway, without a savepoint": _MIDWAY, "replace": _REPLACE},
    "postgresql": {
        "an exception that is caught": (
            "DO $$ BEGIN INSERT INTO unit VALUES (K3, 'W3', NULL); UPDATE unit SET name = 'Wx' WHERE id = K2;"
            " BEGIN INSERT INTO unit VALUES (K4, 'W4', K3); UPDATE unit SET id = K7 WHERE id = K2;"
            " DELETE FROM login WHERE account_id = K1; INSERT INTO unit VALUES (K5, 'W3', NULL);"
            " EXCEPTION WHEN unique_violation THEN INSERT INTO unit VALUES (K4, 'W5', K2); END; END $$",
            "COMMIT",
        ),
    },
}  # fmt: skip


@contextmanager
def program(node: Node) -> Iterator[Connection]:
    """A connection on which BEGIN, SAVEPOINT and COMMIT are said as a program says them."""
    with node.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def say(connection: Connection, statement: str) -> None:
    if not statement.startswith("!"):
        connection.execute(text(statement))
        return
    with pytest.raises(DBAPIError):
        connection.execute(text(statement[1:]))


def test_what_is_rolled_back_to_a_savepoint_never_arrives(pipeline: Pipeline, database_kind: str) -> None:
    """TRAPS 1, 2, 3, 4: outbox rows are taken back with the rows that they tell of, and so is what SQLite notes of a REPLACE."""
    with program(pipeline.primary) as connection:
        for number, (name, statements) in enumerate((CASES | ONLY[database_kind]).items(), 1):
            own = [re.sub(r"K(?=\d)", str(number * 10), one).replace("'W", f"'w{number}-") for one in (*ROWS, *statements)]
            for statement in own[: len(ROWS)]:
                say(connection, statement)
            pipeline.move()
            say(connection, "BEGIN")
            for statement in own[len(ROWS) :]:
                say(connection, statement)
            pipeline.move()
            assert pipeline.wrong() == [], name
            assert not pipeline.primary.rows("SELECT 1 FROM stsync_outbox")


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_transaction_held_open_keeps_nobody_else_waiting(pipeline: Pipeline, end: str) -> None:
    """TRAPS 1: its outbox rows stand before, between and behind those that go meanwhile, with a relay that restarts; it arrives at
    its commit. (On SQLite nobody else can commit meanwhile.)"""
    primary = pipeline.primary
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL), (2, 'two', 1), (3, 'three', NULL)")
    pipeline.move()
    with program(primary) as held:
        say(held, "BEGIN")
        say(held, "UPDATE unit SET name = 'uno' WHERE id = 1")
        say(held, "SAVEPOINT a")
        say(held, "DELETE FROM unit WHERE id = 3")
        for number in range(10, 40):
            primary.execute(f"INSERT INTO unit VALUES ({number}, 'unit {number}', NULL)")
            if number >= 25:  # rows of both in turn, after runs of others
                say(held, f"INSERT INTO unit VALUES ({number * 10}, 'held {number}', 1)")
            if number % 10 == 5:
                pipeline.move()
                pipeline.restart_relay()
        many = ", ".join(f"({number}, 'unit {number}', NULL)" for number in range(1000, 1150))
        primary.execute(f"INSERT INTO unit VALUES {many}")
        say(held, "INSERT INTO unit VALUES (2000, 'behind them', 1)")
        pipeline.move()
        say(held, "ROLLBACK TO SAVEPOINT a")
        say(held, "INSERT INTO unit VALUES (100, 'held', 1)")
        primary.execute("UPDATE unit SET name = 'dos' WHERE id = 2")
        pipeline.move()
        assert not primary.rows("SELECT 1 FROM stsync_outbox")
        assert pipeline.wrong() == []
        pipeline.restart_relay()
        say(held, end)
    pipeline.move()
    assert pipeline.wrong() == []
    assert len(pipeline.secondary.rows("SELECT 1 FROM unit WHERE id = 100 OR name = 'uno'")) == (2 if end == "COMMIT" else 0)
