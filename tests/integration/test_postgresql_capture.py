"""PostgreSQL: statements, settings and names of an application's that are not as usual are captured all the same (TRAPS 2, 4, 30)."""

import pytest
from sqlalchemy import text

from tests.integration.conftest import MakePipeline
from tests.pipeline import Pipeline

T = "CREATE TABLE t (id int PRIMARY KEY, v text)"
FOLLOWED = (
    "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    "CREATE TRIGGER zz AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION look()",
)
Make = MakePipeline


@pytest.fixture
def make(new_pipeline: MakePipeline) -> Make:
    return lambda *schema, tables="t\n": new_pipeline("postgresql", *schema, tables=tables)


def run(pipeline: Pipeline, *statements: str) -> None:
    """In one session; what each did arrives before the next."""
    with pipeline.primary.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))
            pipeline.move()


REUSED = {
    "merge": (
        "MERGE INTO t USING (VALUES (1, 'del'), (2, 'mv')) s (i, op) ON t.id = s.i"
        " WHEN MATCHED AND op = 'del' THEN DELETE WHEN MATCHED THEN UPDATE SET id = 1"
    ),
    "another row is moved": "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING *) UPDATE t SET id = 1 FROM d WHERE t.id = 2",
    "a row is made": "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING *) INSERT INTO t SELECT id, 'new' FROM d",
    "a row is made, of one read": "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING *) INSERT INTO t SELECT id, 'new' FROM d LIMIT 1",
}


@pytest.mark.parametrize("followed", [False, True], ids=["", "followed"])
@pytest.mark.parametrize("what", REUSED)
def test_a_key_that_one_statement_frees_and_gives_away_is_kept(make: Make, what: str, followed: bool) -> None:
    pipeline = make(T, *(FOLLOWED if followed else ()))
    run(pipeline, "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')", REUSED[what], "DELETE FROM t WHERE id = 3")
    assert pipeline.wrong() == []
    assert pipeline.primary.rows("SELECT count(*) FROM t WHERE id = 1") == [(1,)]


def test_the_writers_settings_make_no_difference_to_what_is_a_change(make: Make) -> None:
    pipeline = make("CREATE TABLE t (k double precision PRIMARY KEY, v text)")
    run(
        pipeline,
        "INSERT INTO t VALUES (0.3, 'a'), (0, 'z')",
        "SET extra_float_digits = 0",
        "UPDATE t SET k = 0.1::float8 + 0.2::float8, v = 'b' WHERE k > 0",
        "UPDATE t SET k = '-0.0' WHERE k = 0",
    )
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT k, v FROM t WHERE k > 0") == [(0.1 + 0.2, "b")]


def test_names_are_read_as_they_are_whatever_the_writer_takes_a_backslash_for(make: Make) -> None:
    pipeline = make(r'CREATE TABLE t (id int PRIMARY KEY, "a""b" text, "c\d" text, "e\nf" text)')
    run(
        pipeline,
        "SET standard_conforming_strings = off",
        "INSERT INTO t VALUES (1, 'a', 'b', 'c')",
        'UPDATE t SET "a""b" = \'q\'',
    )
    assert pipeline.wrong() == []
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_rejected") == [(0,)]


@pytest.mark.parametrize("name", ["found", "new", "old", "tg_op", "tg_argv"])
def test_a_column_may_have_the_name_of_a_variable(make: Make, name: str) -> None:
    filtered = make(f"CREATE TABLE t (id int PRIMARY KEY, {name} boolean, v text)", tables=f't where="{name}"\n')
    run(
        filtered,
        "INSERT INTO t VALUES (1, true, 'a'), (2, false, 'b'), (3, true, 'c')",
        "UPDATE t SET v = 'q'",
        f"UPDATE t SET {name} = NOT {name} WHERE id < 3",
        "UPDATE t SET id = id + 10",
        "DELETE FROM t WHERE id = 13",
    )
    assert filtered.wrong() == []
    key = make(f"CREATE TABLE t ({name} int PRIMARY KEY, v text)", *FOLLOWED, tables=f't where="{name} > 0"\n')
    run(key, "INSERT INTO t VALUES (1, 'a'), (2, 'b')", "UPDATE t SET v = 'q'", f"UPDATE t SET {name} = 5 WHERE {name} = 1")
    run(key, f"DELETE FROM t WHERE {name} = 2")
    assert key.wrong() == []
    assert key.secondary.rows("SELECT * FROM t") == [(5, "q")]
