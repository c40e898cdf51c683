"""What waits on a secondary goes in the order in which it was meant, however much of it there is (TRAPS 27, 29)."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consumer import retries
from consumer.quarantine import RETRIED_AT_ONCE
from publisher import capture
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_told
from tests.harness import NO_BROKER, Node, make_cluster
from tests.pipeline import Pipeline

BY_ITSELF, WHEN_ASKED = (f"[replay]\nretry_quarantine_s = {seconds}\n" for seconds in (0.1, 600))
ACCOUNT = "CREATE TABLE account (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE, disabled INT)"
ITEM = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE)"
NOTE = "CREATE TABLE note (id BIGINT PRIMARY KEY, body VARCHAR(40))"
NEW_COLUMN = "ALTER TABLE {} ADD COLUMN extra VARCHAR(40)"
CHANGES = 200  # of one row
# How many rows, their table, what there is of them before, and what makes a ring of them, with a column that was added meanwhile.
RINGS = {
    "postgresql": (
        600,
        "CREATE TABLE ring (id BIGINT PRIMARY KEY, v BIGINT NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        ["INSERT INTO ring SELECT i, i FROM generate_series(1, 600) i"],
        "UPDATE ring SET v = v % 600 + 1, extra = 'e'",
    ),
    "sqlite": (
        501,
        "CREATE TABLE ring (id BIGINT PRIMARY KEY, v BIGINT REFERENCES ring (id) DEFERRABLE INITIALLY DEFERRED)",
        [],
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 501)"
        " INSERT INTO ring SELECT i, i % 501 + 1, 'e' FROM n",
    ),
}

MakePipeline = Callable[..., Pipeline]


class Clock:
    """Runs as the real one, and may be turned forward, so that nobody has to wait for the rests between retries."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def new_pipeline(tmp_path: Path, new_database: NewDatabase) -> Iterator[MakePipeline]:
    """Makes a primary and a secondary in this process, with these tables."""
    made: list[Pipeline] = []

    def make(kind: str, *schema: str, settings: str = BY_ITSELF) -> Pipeline:
        tables = "".join(f"{create.split()[2]}\n" for create in schema)
        cluster = make_cluster(
            tmp_path / "c",
            kind,
            NO_BROKER,
            new_database,
            schema=schema,
            tables=tables,
            nodes=("st1", "st2"),
            settings=settings,
        )
        made.append(Pipeline(cluster))
        return made[-1]

    yield make
    for one in made:
        one.close()


def one_by_one(pipeline: Pipeline, *statements: str) -> None:
    """Each a change set of its own, which the secondary has before the next."""
    for statement in statements:
        pipeline.primary.execute(statement)
        pipeline.move()


def add_column(node: Node, table: str) -> None:
    node.execute(NEW_COLUMN.format(table))
    capture.install(node.database, node.settings)


def waiting(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    return pipeline.secondary.rows("SELECT id, kind, row_json, reason, attempts FROM stsync_quarantine ORDER BY id")


def wait_healed(pipeline: Pipeline) -> None:
    """Nothing waits any more, and the secondary is as the primary."""

    def healed() -> bool:
        pipeline.move()
        return not waiting(pipeline)

    wait_told(healed, lambda: waiting(pipeline)[:3], 10)
    assert pipeline.wrong() == []


def wait_retried(pipeline: Pipeline) -> None:
    """All that waits now was tried again since, if it did not go."""
    before = {row[0]: row[4] for row in waiting(pipeline)}

    def retried() -> bool:
        pipeline.move()
        return all(row[4] > before.get(row[0], 0) for row in waiting(pipeline))

    wait_told(retried, lambda: waiting(pipeline), 10)


def test_a_row_never_goes_back_to_what_it_was(new_pipeline: MakePipeline, database_kind: str) -> None:
    """TRAPS 29: what of a change set went settles older changes of its row, though another change of the same set waits."""
    pipeline = new_pipeline(database_kind, ACCOUNT)
    primary, secondary = pipeline.primary, pipeline.secondary
    secondary.execute("INSERT INTO account VALUES (98, 'z', 0), (99, 'x', 0)")
    one_by_one(pipeline, "INSERT INTO account VALUES (1, 'x', 0)")
    assert len(waiting(pipeline)) == 1
    primary.execute("UPDATE account SET name = 'y', disabled = 1 WHERE id = 1", "UPDATE account SET name = 'z' WHERE id = 1")
    pipeline.move()
    row = partial(secondary.rows, "SELECT name, disabled FROM account WHERE id = 1")
    assert row() == [("y", 1)]
    secondary.execute("DELETE FROM account WHERE id = 99")
    wait_retried(pipeline)
    assert row() == [("y", 1)], "an account that was disabled is enabled again"
    assert len(waiting(pipeline)) == 1
    secondary.execute("DELETE FROM account WHERE id = 98")
    wait_healed(pipeline)
    assert row() == [("z", 1)]


def test_a_key_update_that_waits_settles_no_older_step(new_pipeline: MakePipeline, database_kind: str) -> None:
    """TRAPS 27, 29: the last step of an exchange of unique values gives the row another key, and needs the steps before it."""
    pipeline = new_pipeline(database_kind, ITEM)
    one_by_one(pipeline, "INSERT INTO item VALUES (11, 'k'), (12, 'l')")
    add_column(pipeline.primary, "item")
    one_by_one(
        pipeline,
        "UPDATE item SET name = 'aside', extra = '1' WHERE id = 11",
        "UPDATE item SET name = 'k', extra = '2' WHERE id = 12",
        "UPDATE item SET id = 21, name = 'l', extra = '3' WHERE id = 11",
    )
    assert waiting(pipeline)
    add_column(pipeline.secondary, "item")
    wait_healed(pipeline)
    assert pipeline.secondary.rows("SELECT id, name, extra FROM item ORDER BY id") == [(12, "k", "2"), (21, "l", "3")]


@pytest.mark.parametrize("settings", [BY_ITSELF, WHEN_ASKED], ids=["by itself", "when asked"])
@pytest.mark.parametrize("database_kind", RINGS)
def test_a_ring_of_any_size_heals(
    new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, database_kind: str, settings: str
) -> None:
    """TRAPS 27, 29: rows of which none can go without the others, more of them than are tried at once."""
    many, create, before, ring = RINGS[database_kind]
    assert many > RETRIED_AT_ONCE
    pipeline = new_pipeline(database_kind, create, settings=settings)
    one_by_one(pipeline, *before)
    add_column(pipeline.primary, "ring")
    one_by_one(pipeline, ring)
    assert len(waiting(pipeline)) == many
    add_column(pipeline.secondary, "ring")
    if settings == WHEN_ASKED:
        pipeline.secondary.execute("UPDATE stsync_quarantine SET requested = 1")
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)

    def healed() -> bool:
        clock.ahead_s += 60
        pipeline.move()
        return not waiting(pipeline)

    wait_told(healed, lambda: waiting(pipeline)[:3], 20)
    assert pipeline.wrong() == []


def test_a_row_that_is_refused_again_and_again_waits_once(new_pipeline: MakePipeline, database_kind: str) -> None:
    """TRAPS 29: as long as its table is missing; the quarantine is bounded by what there is to mend, not by the time it takes."""
    pipeline = new_pipeline(database_kind, NOTE, settings=WHEN_ASKED)
    one_by_one(pipeline, "INSERT INTO note VALUES (1, 'first')")
    pipeline.secondary.execute("DROP TABLE note")
    one_by_one(pipeline, *(f"UPDATE note SET body = '{number}'" for number in range(CHANGES)))
    assert 1 <= len(waiting(pipeline)) <= 2
    pipeline.secondary.execute(NOTE, "UPDATE stsync_quarantine SET requested = 1")
    wait_healed(pipeline)
    assert pipeline.secondary.rows("SELECT body FROM note") == [(str(CHANGES - 1),)]
