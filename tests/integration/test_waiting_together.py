"""What waits on a secondary goes as soon as it can, whatever waits beside it, and rests until then (TRAPS 27, 29)."""

from collections import Counter

import pytest
from structlog.testing import capture_logs

from consumer import retries
from publisher import capture
from tests.faults.conftest import wait_told
from tests.integration import test_waiting_order as order
from tests.integration.test_waiting_order import (
    ITEM,
    NOTE,
    WHEN_ASKED,
    Clock,
    MakePipeline,
    add_column,
    one_by_one,
    wait_healed,
    waiting,
)
from tests.pipeline import Pipeline

new_pipeline = order.new_pipeline
PARENT = "CREATE TABLE parent (id BIGINT PRIMARY KEY)"
NAMED_PARENT = "CREATE TABLE parent (id BIGINT PRIMARY KEY, name VARCHAR(40) NOT NULL UNIQUE)"
CHILD = "CREATE TABLE child (id BIGINT PRIMARY KEY, p BIGINT NOT NULL, FOREIGN KEY (p) REFERENCES parent (id))"
ACCOUNT = "CREATE TABLE account (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE, disabled INT, note VARCHAR(40){})"
SEVERAL = 12  # change sets
CHANGES = 200  # of one row
# A table, what there is of it before, and what makes a ring of two rows, with a column that was added meanwhile.
RINGS = {
    "postgresql": (
        "CREATE TABLE ring (id BIGINT PRIMARY KEY, v BIGINT NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        ["INSERT INTO ring VALUES (1, 1), (2, 2)"],
        "UPDATE ring SET v = 3 - v, extra = 'e'",
    ),
    "sqlite": (
        "CREATE TABLE ring (id BIGINT PRIMARY KEY, v BIGINT REFERENCES ring (id) DEFERRABLE INITIALLY DEFERRED)",
        [],
        "INSERT INTO ring VALUES (1, 2, 'e'), (2, 1, 'e')",
    ),
}


EMPTIED = {
    "postgresql": "TRUNCATE parent",
    "sqlite": (  # as a program announces it
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        " VALUES ('parent', 'T', '[]', '[]', 1, 0)"
    ),
}
# The tables, what stands there before, the table that has a column more on the primary, and changes of which all are refused.
GUARDED = {
    "computed": (
        (
            NAMED_PARENT,
            "CREATE TABLE child (id BIGINT PRIMARY KEY, x BIGINT, p BIGINT AS (x + 0) STORED,"
            " FOREIGN KEY (p) REFERENCES parent (id))",
        ),
        ["INSERT INTO parent VALUES (1, 'k'), (2, 'm')", "INSERT INTO child (id, x) VALUES (7, 1)"],
        "child",
        [
            "UPDATE child SET x = 2, extra = 'e'",
            "DELETE FROM parent WHERE id = 1",
            "INSERT INTO parent VALUES (3, 'k')",
            "UPDATE child SET x = 3, extra = 'f'",
        ],
    ),
    "not unique": (
        (
            "CREATE TABLE parent (id BIGINT PRIMARY KEY, c VARCHAR(10) NOT NULL, KEY (c))",
            "CREATE TABLE child (id BIGINT PRIMARY KEY, c VARCHAR(10),"
            " FOREIGN KEY (c) REFERENCES parent (c) ON UPDATE CASCADE)",
        ),
        ["INSERT INTO parent VALUES (1, 'a')"],
        "parent",
        [
            "UPDATE parent SET c = 'b', extra = 'e'",
            "INSERT INTO child VALUES (1, 'b')",
            "UPDATE parent SET c = 'd', extra = 'f'",
        ],
    ),
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the rests between retries."""
    made = Clock()
    monkeypatch.setattr(retries, "time", made)
    return made


def work(pipeline: Pipeline, clock: Clock, times: int) -> None:
    """The secondary's turns, seconds apart."""
    for _ in range(times):
        clock.ahead_s += 5
        pipeline.move()


def attempts(pipeline: Pipeline) -> dict[int, int]:
    return {row[0]: row[4] for row in waiting(pipeline)}


def test_change_sets_that_cannot_go_rest(new_pipeline: MakePipeline, clock: Clock, database_kind: str) -> None:
    """TRAPS 29: rows of one change set are tried together too, and when they cannot go, nothing has come forward."""
    pipeline = new_pipeline(database_kind, PARENT, CHILD, settings=WHEN_ASKED)
    one_by_one(pipeline, "INSERT INTO parent VALUES (1)")
    pipeline.secondary.execute("DELETE FROM parent")
    with capture_logs() as told:
        one_by_one(pipeline, "INSERT INTO child VALUES (1, 1), (2, 1)")
        work(pipeline, clock, 60)
    found = attempts(pipeline)
    assert len(found) == 2
    assert all(2 <= number <= 3 for number in found.values()), found
    assert Counter(one["event"] for one in told)["quarantine_retried"] == 0


@pytest.mark.parametrize("database_kind", RINGS)
def test_a_ring_heals_though_one_of_its_rows_changed_since(new_pipeline: MakePipeline, database_kind: str) -> None:
    """TRAPS 27, 29: the later change of one row needs all of the change set before it."""
    create, before, ring = RINGS[database_kind]
    pipeline = new_pipeline(database_kind, create)
    one_by_one(pipeline, *before)
    add_column(pipeline.primary, "ring")
    one_by_one(pipeline, ring, "UPDATE ring SET extra = 'f' WHERE id = 1")
    assert waiting(pipeline)
    add_column(pipeline.secondary, "ring")
    wait_healed(pipeline)
    assert pipeline.secondary.rows("SELECT id, v, extra FROM ring ORDER BY id") == [(1, 2, "f"), (2, 1, "e")]


@pytest.mark.parametrize("database_kind", RINGS)
def test_a_ring_heals_though_a_table_of_its_change_set_cannot_be_emptied(
    new_pipeline: MakePipeline, database_kind: str
) -> None:
    """TRAPS 4, 29: that is never tried again, and keeps nothing else from going."""
    create, before, ring = RINGS[database_kind]
    pipeline = new_pipeline(database_kind, create, PARENT)
    secondary = pipeline.secondary
    one_by_one(pipeline, "INSERT INTO parent VALUES (1)", *before)
    secondary.execute(
        "CREATE TABLE own (id BIGINT PRIMARY KEY, p BIGINT REFERENCES parent (id))", "INSERT INTO own VALUES (1, 1)"
    )
    add_column(pipeline.primary, "ring")
    pipeline.primary.execute(EMPTIED[database_kind], ring)
    pipeline.move()
    assert len(waiting(pipeline)) == 3
    add_column(secondary, "ring")

    def healed() -> bool:
        pipeline.move()
        return len(waiting(pipeline)) == 1

    wait_told(healed, lambda: waiting(pipeline), 10)
    assert secondary.rows("SELECT id, v, extra FROM ring ORDER BY id") == [(1, 2, "e"), (2, 1, "e")]
    assert secondary.rows("SELECT kind, table_name FROM stsync_quarantine") == [("T", "parent")]


@pytest.mark.parametrize("database_kind", ["mariadb"])
@pytest.mark.parametrize("case", GUARDED)
def test_a_change_that_a_foreign_key_looks_at_waits_for_itself(
    new_pipeline: MakePipeline, database_kind: str, case: str
) -> None:
    """TRAPS 27, 29: through a column that is computed, and from the side of a parent whose key is not unique (InnoDB)."""
    tables, before, altered, changes = GUARDED[case]
    pipeline = new_pipeline(database_kind, *tables)
    one_by_one(pipeline, *before)
    add_column(pipeline.primary, altered)
    one_by_one(pipeline, *changes)
    assert len(waiting(pipeline)) == len(changes)
    add_column(pipeline.secondary, altered)
    wait_healed(pipeline)


def test_a_change_goes_though_the_next_one_of_its_row_never_will(new_pipeline: MakePipeline, database_kind: str) -> None:
    """TRAPS 29: they fail for different reasons; the next one has all values of the first, but may not stand in its place."""
    pipeline = new_pipeline(database_kind, ACCOUNT.format(""))
    secondary = pipeline.secondary
    secondary.execute("DROP TABLE account", ACCOUNT.format(" CHECK (length(note) < 6)"))
    capture.install(secondary.database, secondary.settings)
    one_by_one(pipeline, "INSERT INTO account VALUES (1, 'k', 0, '')")
    secondary.execute("INSERT INTO account VALUES (99, 'x', 0, '')")
    one_by_one(
        pipeline,
        "UPDATE account SET name = 'x', disabled = 1 WHERE id = 1",
        "UPDATE account SET note = 'too long for it' WHERE id = 1",
        "INSERT INTO account VALUES (2, 'k', 0, '')",
    )
    assert waiting(pipeline)
    secondary.execute("DELETE FROM account WHERE id = 99")

    def healed() -> bool:
        pipeline.move()
        return len(waiting(pipeline)) == 1

    wait_told(healed, lambda: waiting(pipeline), 10)
    assert secondary.rows("SELECT id, name, disabled, note FROM account ORDER BY id") == [(1, "x", 1, ""), (2, "k", 0, "")]
    ((_, kind, row, _, _),) = waiting(pipeline)
    assert (kind, "too long for it" in row) == ("U", True)


@pytest.mark.parametrize("together", [False, True], ids=["four change sets", "one change set"])
def test_a_parent_is_replaced_by_one_with_its_name(new_pipeline: MakePipeline, database_kind: str, together: bool) -> None:
    """TRAPS 27: the old one gives its name away before it is deleted, and cannot be deleted before its child has left it."""
    pipeline = new_pipeline(database_kind, NAMED_PARENT, CHILD)
    one_by_one(pipeline, "INSERT INTO parent VALUES (1, 'k')", "INSERT INTO child VALUES (7, 1)")
    add_column(pipeline.primary, "parent")
    replaced = (
        "UPDATE parent SET name = 'old', extra = 'e' WHERE id = 1",
        "INSERT INTO parent VALUES (2, 'k', 'e')",
        "UPDATE child SET p = 2",
        "DELETE FROM parent WHERE id = 1",
    )
    if together:
        pipeline.primary.execute(*replaced)
        pipeline.move()
    else:
        one_by_one(pipeline, *replaced)
    assert waiting(pipeline)
    add_column(pipeline.secondary, "parent")
    wait_healed(pipeline)
    assert pipeline.secondary.rows("SELECT id, name, extra FROM parent") == [(2, "k", "e")]
    assert pipeline.secondary.rows("SELECT id, p FROM child") == [(7, 2)]


def test_the_command_applies_what_stands_behind_a_change_set_that_cannot_go(
    new_pipeline: MakePipeline, database_kind: str
) -> None:
    """TRAPS 29: without a running service; a commit that the database refuses (SQLite's deferred references) is no end of it."""
    pipeline = new_pipeline(database_kind, PARENT, CHILD, ITEM, settings=WHEN_ASKED)
    secondary = pipeline.secondary
    one_by_one(pipeline, "INSERT INTO parent VALUES (1)")
    secondary.execute("DELETE FROM parent", "INSERT INTO item VALUES (99, 'taken')")
    one_by_one(pipeline, "INSERT INTO child VALUES (1, 1), (2, 1)", "INSERT INTO item VALUES (1, 'taken')")
    before = attempts(pipeline)
    assert len(before) == 3
    secondary.execute("DELETE FROM item WHERE id = 99")
    done = secondary.command("quarantine", "retry")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("1 applied, 2 still cannot be applied\n")
    assert secondary.rows("SELECT id, name FROM item") == [(1, "taken")]
    after = attempts(pipeline)
    assert list(after) == list(before)[:2]
    assert all(after[one] > before[one] for one in after)


def test_only_what_was_asked_for_is_tried(new_pipeline: MakePipeline, clock: Clock, database_kind: str) -> None:
    """TRAPS 29: with its change set, but nothing of those between, which could go."""
    pipeline = new_pipeline(database_kind, PARENT, CHILD, settings=WHEN_ASKED)
    secondary = pipeline.secondary
    one_by_one(pipeline, "INSERT INTO parent VALUES (5), (6)")
    secondary.execute("DELETE FROM parent")
    parents = [5, *(6 for _ in range(SEVERAL - 2)), 5]
    one_by_one(
        pipeline,
        *(f"INSERT INTO child VALUES ({2 * i}, {parent}), ({2 * i + 1}, {parent})" for i, parent in enumerate(parents)),
    )
    work(pipeline, clock, 40)
    before = attempts(pipeline)
    assert len(before) == 2 * SEVERAL
    work(pipeline, clock, 10)
    assert attempts(pipeline) == before, "they do not rest"
    secondary.execute("INSERT INTO parent VALUES (6)")
    first, last = min(before), max(before)
    secondary.execute(f"UPDATE stsync_quarantine SET requested = 1 WHERE id IN ({first}, {last})")
    work(pipeline, clock, 10)
    after = attempts(pipeline)
    assert {one for one in before if after.get(one) != before[one]} == {first, last}
    assert secondary.rows("SELECT id FROM child") == []
    secondary.execute("INSERT INTO parent VALUES (5)", "UPDATE stsync_quarantine SET requested = 1")
    wait_healed(pipeline)


@pytest.mark.parametrize("together", [False, True], ids=["many change sets", "one change set"])
def test_a_row_that_is_refused_again_and_again_waits_in_its_first_place(
    new_pipeline: MakePipeline, database_kind: str, together: bool
) -> None:
    """TRAPS 29: with its newest values; since when it waits is not forgotten, nor what it has to go before."""
    pipeline = new_pipeline(database_kind, NOTE, settings=WHEN_ASKED)
    secondary = pipeline.secondary
    one_by_one(pipeline, "INSERT INTO note VALUES (1, 'first')")
    add_column(pipeline.primary, "note")
    one_by_one(pipeline, "UPDATE note SET extra = 'the first' WHERE id = 1")
    query, newest = "SELECT id, first_ms FROM stsync_quarantine", "SELECT attempts, last_ms FROM stsync_quarantine"
    before, ((attempts_before, last_ms),) = secondary.rows(query), secondary.rows(newest)
    assert len(before) == 1
    many = CHANGES if together or database_kind == "sqlite" else CHANGES // 4  # a server takes longer for each change set
    changes = [f"UPDATE note SET body = '{number}', extra = 'e{number}' WHERE id = 1" for number in range(many)]
    if together:
        pipeline.primary.execute(*changes)
        pipeline.move()
    else:
        one_by_one(pipeline, *changes)
    assert secondary.rows(query) == before
    ((attempts_after, newest_ms),) = secondary.rows(newest)
    assert (attempts_after > attempts_before, newest_ms > last_ms) == (True, True), "nothing says that its values are others"
    ((_, _, row, _, _),) = waiting(pipeline)
    assert f'"{many - 1}"' in row
    assert f'"e{many - 1}"' in row
    add_column(secondary, "note")
    secondary.execute("UPDATE stsync_quarantine SET requested = 1")
    wait_healed(pipeline)
    assert secondary.rows("SELECT body, extra FROM note") == [(str(many - 1), f"e{many - 1}")]
