"""A program on a secondary that holds what replay needs: it is waited for, or tried again, and never the change's own fault."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from common.errors import Unavailable
from tests.harness import Node, wait_for
from tests.pipeline import Pipeline

WAITING = {
    "postgresql": "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT 1 FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND COMMAND = 'Query' AND ID <> CONNECTION_ID()"
    " AND INFO IS NOT NULL AND TIME_MS > 200",
}


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """With a row in place."""
    pipeline.primary.execute(
        "INSERT INTO unit VALUES (1, 'one', NULL)", "INSERT INTO account VALUES (1, 'a', 1, 'old', 'x')"
    )
    pipeline.move()
    return pipeline


class Moving(threading.Thread):
    """A move in a thread of its own, which may have to wait; `unavailable`: how it ended, if it did not go."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.unavailable: Unavailable | None = None
        self.start()

    def run(self) -> None:
        try:
            self._pipeline.move()
        except Unavailable as exc:
            self.unavailable = exc


@contextmanager
def program(node: Node) -> Iterator[Connection]:
    with node.engine.connect() as connection:
        yield connection


def both_change(pipeline: Pipeline) -> None:
    pipeline.primary.execute(
        "UPDATE unit SET name = 'theirs' WHERE id = 1", "UPDATE account SET note = 'theirs', name = 'b' WHERE id = 1"
    )


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_a_row_that_a_program_holds_is_waited_for(pipeline: Pipeline, database_kind: str) -> None:
    """TRAPS 29."""
    with program(pipeline.secondary) as holder:
        holder.execute(text("UPDATE account SET note = 'mine' WHERE id = 1"))
        both_change(pipeline)
        moving = Moving(pipeline)
        wait_for(lambda: pipeline.secondary.rows(WAITING[database_kind]), "a replay that waits", 20)
        assert pipeline.secondary.rows("SELECT name FROM unit") == [("one",)], "a part of a change set is seen"
        holder.commit()
    moving.join(20)
    assert moving.unavailable is None
    assert pipeline.wrong() == []


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_a_deadlock_with_a_program_is_no_fault_of_the_change(pipeline: Pipeline, database_kind: str) -> None:
    """TRAPS 29: whichever of the two the database picks."""
    with program(pipeline.secondary) as holder:
        holder.execute(text("UPDATE account SET note = 'mine' WHERE id = 1"))
        for number in range(100, 120):  # MariaDB picks the one that has written less
            holder.execute(text(f"INSERT INTO audit VALUES ({number}, 'mine')"))
        both_change(pipeline)
        moving = Moving(pipeline)
        wait_for(lambda: pipeline.secondary.rows(WAITING[database_kind]), "a replay that waits", 20)
        try:
            holder.execute(text("UPDATE unit SET name = 'mine' WHERE id = 1"))
            holder.commit()
            lost = False
        except DBAPIError:
            holder.rollback()
            lost = True
    moving.join(20)
    assert lost == (moving.unavailable is None), "one of the two"
    assert pipeline.secondary.rows("SELECT 1 FROM stsync_quarantine") == []
    if moving.unavailable is not None:
        assert "deadlock" in str(moving.unavailable).lower()
        pipeline.again()
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT 1 FROM stsync_refusals") == []


@pytest.mark.parametrize("database_kind", ["mariadb", "sqlite"])
def test_a_lock_that_is_held_for_too_long_is_no_fault_of_the_change(pipeline: Pipeline, database_kind: str) -> None:
    """TRAPS 29: the database gives up waiting; the change is there as soon as the lock is gone."""
    shorter = {"mariadb": "SET SESSION innodb_lock_wait_timeout = 1", "sqlite": "PRAGMA busy_timeout = 200"}
    pipeline._connection.exec_driver_sql(shorter[database_kind])
    pipeline._connection.commit()
    with program(pipeline.secondary) as holder:
        holder.execute(text("UPDATE account SET note = 'mine' WHERE id = 1"))
        both_change(pipeline)
        with pytest.raises(Unavailable):
            pipeline.move()
        assert pipeline.secondary.rows("SELECT name FROM unit") == [("one",)]
        holder.rollback()
    pipeline.again()
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT 1 FROM stsync_refusals") == []
