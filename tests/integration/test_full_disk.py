"""A disk that is full is no fault of the change: it waits, and nothing is lost or set aside (TRAPS 29).

SQLite itself is made to run out of pages; of the servers only the error is brought about, with the number by which they tell it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import Connection

from common.errors import Unavailable
from tests.harness import Node
from tests.pipeline import Pipeline

MARIADB = {
    "disk full": 1021,
    "error writing file": 1026,
    "of the file system": 3,
    "no room for its index": 1034,
    "full": 1114,
}
KINDS = [
    pytest.param("sqlite", 0, id="sqlite"),
    pytest.param("postgresql", 0, id="postgresql"),
    *(pytest.param("mariadb", number, id=f"mariadb {name}") for name, number in MARIADB.items()),
]


@contextmanager
def full(node: Node, ours: Connection, kind: str, table: str, number: int) -> Iterator[None]:
    """No room for one more row of the table, neither for anybody else."""
    if kind == "sqlite":
        pages = ours.exec_driver_sql("PRAGMA page_count").scalar()
        most = ours.exec_driver_sql("PRAGMA max_page_count").scalar()
        ours.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        ours.rollback()
        yield
        ours.exec_driver_sql(f"PRAGMA max_page_count = {most}")
        ours.rollback()
        return
    if kind == "mariadb":
        node.execute(
            f"CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW"
            f" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'no room'"
        )
        yield
        node.execute("DROP TRIGGER no_room")
        return
    node.execute(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
        f"CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room()",
        f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER no_room",
    )
    yield
    node.execute(f"DROP TRIGGER no_room ON {table}", "DROP FUNCTION no_room")


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """With a row in place."""
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    pipeline.move()
    return pipeline


def save(node: Node) -> None:
    """More than free space in pages that are in use already could take."""
    chance = random.Random(1)  # what cannot be compressed
    notes = ", ".join(f"({number}, 'a{number}', 1, '{chance.randbytes(1500).hex()}', NULL)" for number in range(100))
    node.execute("UPDATE unit SET name = 'uno'", f"INSERT INTO account VALUES {notes}")


@pytest.mark.parametrize(("database_kind", "number"), KINDS)
def test_a_secondary_whose_disk_is_full_goes_on_when_there_is_room(
    pipeline: Pipeline, database_kind: str, number: int
) -> None:
    secondary = pipeline.secondary
    with full(secondary, pipeline._connection, database_kind, "account", number):
        save(pipeline.primary)
        with pytest.raises(Unavailable):
            pipeline.move()
        pipeline._connection.rollback()
        assert secondary.rows("SELECT name FROM unit") == [("one",)]
        assert secondary.rows("SELECT 1 FROM stsync_quarantine") == []
    pipeline.again()
    assert pipeline.wrong() == []
    assert secondary.rows("SELECT count(*) FROM account") == [(100,)]


@pytest.mark.parametrize(("database_kind", "number"), KINDS)
def test_a_primary_without_room_for_the_journal_loses_nothing(pipeline: Pipeline, database_kind: str, number: int) -> None:
    """What a writer could still save stands in the outbox until there is room."""
    primary = pipeline.primary
    _, writer = pipeline.relay._open()
    save(primary)
    before = primary.sequence()
    with full(primary, writer, database_kind, "stsync_journal", number):
        with pytest.raises(Unavailable):
            pipeline.move()
        writer.rollback()
        assert primary.rows("SELECT count(*) > 0 FROM stsync_outbox") == [(True,)]
        assert primary.sequence() == before
    pipeline.restart_relay()
    pipeline.move()
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT count(*) FROM account") == [(100,)]
