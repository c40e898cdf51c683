"""A value that a secondary's column cannot hold is quarantined, not bent to fit, however forgiving the server is (TRAPS 29, 30)."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

MANY = 1_200  # so many go into prepared statements


class Case(NamedTuple):
    """The type of a column on the primary and on the secondary; a value that fits both, and one that fits the first only."""

    there: str
    here: str
    fits: str
    unfit: str


CASES = {
    "a text too long": Case("VARCHAR(40)", "VARCHAR(3)", "'abc'", "'abcd'"),
    "bytes too many": Case("VARBINARY(40)", "VARBINARY(3)", "X'616263'", "X'61626364'"),
    "a long text too long": Case("LONGTEXT", "TINYTEXT", "'abc'", "repeat('x', 300)"),
    "a long binary too long": Case("LONGBLOB", "TINYBLOB", "'abc'", "repeat('x', 300)"),
    "an unknown label": Case("ENUM('a', 'b', 'c')", "ENUM('a', 'b')", "'a'", "'c'"),
    "labels of a set": Case("SET('a', 'b', 'c')", "SET('a', 'b')", "'a,b'", "'a,c'"),
    "a number too large": Case("BIGINT", "INT", "1", "3000000000"),
    "a number below zero": Case("INT", "INT UNSIGNED", "1", "-1"),
    "digits too many": Case("DECIMAL(20, 2)", "DECIMAL(5, 2)", "1.25", "1000.00"),
    "a character unknown": Case("VARCHAR(40)", "VARCHAR(40) CHARACTER SET latin1", "'é'", "'😀'"),
    "no value": Case("INT", "INT NOT NULL", "1", "NULL"),
}
KEYS = {
    "a text too long": Case("VARCHAR(40)", "VARCHAR(3)", "'abc'", "'abcd'"),
    "bytes too many": Case("VARBINARY(40)", "VARBINARY(3)", "X'616263'", "X'61626364'"),
    "a number too large": Case("BIGINT", "INT", "2147483647", "3000000000"),
    "a number below zero": Case("INT", "INT UNSIGNED", "0", "-1"),
    "digits too many": Case("DECIMAL(20, 2)", "DECIMAL(5, 2)", "999.99", "1000.00"),
}
SPELLED = {
    "BIGINT": ["7", "8.0", "1e3"],
    "DECIMAL(30, 10)": ["1.5", "2", "1e2"],
    "DECIMAL(65, 0)": ["7", "123456789012345678901234567890123456789012345678901234567890"],
    "YEAR": ["1999", "2155"],
    "CHAR(6)": ['"ab"', '"cd "'],
    "DATETIME(6)": ['"2024-01-02 03:04:05"'],
    "TIME": ['"24:00:00"'],
}


@pytest.fixture
def forgiving(mariadb: PrivateMariaDB) -> Iterator[None]:
    """New sessions of the server shorten, clip and replace what does not fit; ours are to pin theirs."""
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)
    with administrator.connect() as connection:
        before = connection.execute(text("SELECT @@global.sql_mode")).scalar_one()
        connection.execute(text("SET GLOBAL sql_mode = ''"))
    yield
    with administrator.connect() as connection:
        connection.execute(text("SET GLOBAL sql_mode = :v"), {"v": before})


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(params=list(KEYS.values()), ids=list(KEYS))
def key(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def pipeline(
    tmp_path: Path, new_database: NewDatabase, forgiving: None, request: pytest.FixtureRequest
) -> Iterator[Pipeline]:
    """A secondary whose column is the narrower one."""
    if "case" in request.fixturenames:
        case: Case = request.getfixturevalue("case")
        create, column = f"CREATE TABLE t (id BIGINT PRIMARY KEY, v {case.there}, turn INT NOT NULL)", "v"
    else:
        case = request.getfixturevalue("key")
        create, column = f"CREATE TABLE t (id {case.there} PRIMARY KEY, turn INT NOT NULL)", "id"
    cluster = make_cluster(
        tmp_path / "c", "mariadb", NO_BROKER, new_database, schema=(create,), tables="t\n", nodes=("st1", "st2")
    )
    made = Pipeline(cluster)
    made.secondary.execute(f"ALTER TABLE t MODIFY {column} {case.here}")
    made.lists.reread()
    yield made
    made.close()


def quarantined(pipeline: Pipeline) -> set[str]:
    return {key.strip('"') for (key,) in pipeline.secondary.rows("SELECT key_json FROM stsync_quarantine")}


@pytest.mark.parametrize("count", [1, MANY], ids=["alone", "among many"])
def test_what_does_not_fit_is_quarantined_and_not_changed(pipeline: Pipeline, case: Case, count: int) -> None:
    primary, secondary = pipeline.primary, pipeline.secondary
    secondary.execute(f"INSERT INTO t VALUES (1, {case.fits}, 0), (2, {case.unfit}, 0)", "DELETE FROM t")  # it is forgiving
    fitting = [f"({number}, {case.fits}, 0)" for number in range(1, count + 1)]
    primary.execute(f"INSERT INTO t VALUES {', '.join(fitting)}")
    pipeline.move()
    fits = primary.rows("SELECT v FROM t WHERE id = 1")
    assert secondary.rows("SELECT DISTINCT v FROM t") == fits

    more = [f"({5_000 + number}, {case.fits}, 0)" for number in range(1, count)]
    primary.execute(f"INSERT INTO t VALUES {', '.join([*more, f'(9000, {case.unfit}, 0)'])}")
    pipeline.move()
    assert quarantined(pipeline) == {"9000"}
    assert secondary.rows("SELECT id FROM t WHERE id = 9000") == []
    assert secondary.rows("SELECT count(*) FROM t") == [(2 * count - 1,)]

    primary.execute(f"UPDATE t SET turn = 1, v = IF(id = 1, {case.unfit}, v) WHERE id < 9000")
    pipeline.move()
    assert quarantined(pipeline) == {"1", "9000"}
    assert secondary.rows("SELECT turn, count(*) FROM t GROUP BY turn ORDER BY turn") == (
        [(0, 1), (1, 2 * count - 2)] if count > 1 else [(0, 1)]
    )
    assert secondary.rows("SELECT DISTINCT v FROM t") == fits


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "in one statement"])
def test_a_key_that_does_not_fit_is_not_that_of_another_row(pipeline: Pipeline, key: Case, together: bool) -> None:
    """TRAPS 30: cut to the length of the secondary's key, or clipped, it would be."""
    primary, secondary = pipeline.primary, pipeline.secondary
    primary.execute(f"INSERT INTO t VALUES ({key.fits}, 0)")
    pipeline.move()
    kept = secondary.rows("SELECT * FROM t")
    assert len(kept) == 1
    others = ["1", "2"] if "'" not in key.fits else ["'x'", "'y'"]
    rows = [key.unfit, *(others if together else [])]
    for statement in (
        f"INSERT INTO t VALUES {', '.join(f'({one}, 1)' for one in rows)}",
        f"UPDATE t SET turn = 2 WHERE id <> {key.fits}",
        f"DELETE FROM t WHERE id <> {key.fits}",
    ):
        primary.execute(statement)
        pipeline.move()
        assert secondary.rows(f"SELECT * FROM t WHERE id = {key.fits}") == kept, statement


@pytest.mark.parametrize("kind", SPELLED)
def test_keys_that_a_program_spells_in_its_own_way_are_found(tmp_path: Path, new_database: NewDatabase, kind: str) -> None:
    """README: numbers may stand in the outbox as JSON has them, and are the same value."""
    create = f"CREATE TABLE t (id {kind} PRIMARY KEY, turn INT NOT NULL)"
    cluster = make_cluster(
        tmp_path / "c", "mariadb", NO_BROKER, new_database, schema=(create,), tables="t\n", nodes=("st1", "st2")
    )
    pipeline = Pipeline(cluster)
    record = (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json) VALUES ('t', :k, '[\"id\",\"turn\"]', :r)"
    )
    for turn in (0, 1):
        for number, key in enumerate(SPELLED[kind]):
            pipeline.primary.execute(record, k="IU"[turn], r=f"[{key}, {number + 10 * turn}]")
        pipeline.move()
    assert quarantined(pipeline) == set()
    found = pipeline.secondary.rows("SELECT turn FROM t ORDER BY turn")
    assert found == [(number + 10,) for number in range(len(SPELLED[kind]))]
    pipeline.close()
