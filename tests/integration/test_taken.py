"""On MariaDB the rows of a long drain are noted as taken and removed later: nobody reads them again, and nobody else's are touched."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from common.dialects.script import Script
from common.errors import Unavailable
from publisher import capture, outbox, relay, taken
from publisher.taken import Runs
from tests.pipeline import Pipeline

MANY = 3_000
pytestmark = pytest.mark.parametrize("database_kind", ["mariadb"])


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if something happened all the time, so that nothing is removed unless a test has it removed."""
    monkeypatch.setattr(relay, "_SWEEP_AFTER_S", 3600.0)
    monkeypatch.setattr(relay, "_SWEEP_WITHIN_S", 3600.0)


def insert(pipeline: Pipeline, first: int, count: int = MANY) -> None:
    pipeline.primary.execute(
        "INSERT INTO unit VALUES " + ", ".join(f"({first + i}, 'unit {first + i}', NULL)" for i in range(count))
    )


def noted(pipeline: Pipeline) -> list[tuple[int, int]]:
    return [
        (first, last)
        for first, last in pipeline.primary.rows("SELECT first_id, last_id FROM stsync_taken ORDER BY first_id")
    ]


def ids(pipeline: Pipeline) -> list[int]:
    return [number for (number,) in pipeline.primary.rows("SELECT id FROM stsync_outbox ORDER BY id")]


def sweep(pipeline: Pipeline) -> None:
    """All that the relay would do when nothing happens for long."""
    database = pipeline.primary.database
    with database.connect() as connection:
        runs = taken.load(connection)
        while runs:
            runs = taken.sweep(connection, database.dialect, runs)
        assert taken.load(connection) == ()


def take(pipeline: Pipeline, numbers: Sequence[int], known: Runs = ()) -> Runs:
    database = pipeline.primary.database
    with database.connect() as connection:
        script = Script(connection)
        taking = taken.Taking(script, database.dialect, known)
        for start in range(0, len(numbers), 700):  # page by page
            taking.take(numbers[start : start + 700])
        left = taking.note()
        script.commit()
        assert taken.load(connection) == tuple(sorted(left))
    return left


def test_what_was_taken_is_not_taken_again(pipeline: Pipeline) -> None:
    """TRAPS 7, 8: neither by this relay nor by the next, though it still stands there."""
    insert(pipeline, 1)
    pipeline.move()
    (run,) = noted(pipeline)
    assert len(ids(pipeline)) == MANY == run[1] - run[0] + 1
    assert pipeline.primary.status()["outbox"] == 0
    assert pipeline.relay.drain() is None
    pipeline.restart_relay()
    assert pipeline.relay.drain() is None
    assert len(ids(pipeline)) == MANY
    pipeline.primary.execute("UPDATE unit SET name = 'again' WHERE id = 7")
    assert pipeline.primary.status()["outbox"] == 1
    drained = pipeline.relay.drain()
    assert drained is not None
    assert drained.changes == 1


def test_it_is_removed_when_nothing_happens(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, and it is told as it is meanwhile."""
    monkeypatch.setattr(taken, "_SWEPT_ROWS", 1_200)
    insert(pipeline, 1)
    pipeline.move()
    pipeline.relay.sweep()
    assert len(ids(pipeline)) == MANY  # it has not been long
    monkeypatch.setattr(relay, "_SWEEP_AFTER_S", -1.0)
    left = []
    while noted(pipeline):
        assert pipeline.relay.drain() is None
        pipeline.relay.sweep()
        left.append(len(ids(pipeline)))
        assert sum(last - first + 1 for first, last in noted(pipeline)) == left[-1]
        assert pipeline.waiting() == 0
    assert left == [1_800, 600, 0]
    pipeline.restart_relay()
    insert(pipeline, 10_000, 5)
    pipeline.move()
    assert pipeline.wrong() == []


def test_it_is_removed_though_something_happens_all_the_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taken, "_SWEPT_ROWS", 1_200)
    insert(pipeline, 1)
    pipeline.move()
    monkeypatch.setattr(relay, "_SWEEP_WITHIN_S", -1.0)
    for left in (1_800, 600, 0):
        pipeline.primary.execute(f"UPDATE unit SET name = 'left {left}' WHERE id = 7")
        assert pipeline.relay.drain() is not None
        pipeline.relay.sweep()
        assert len(ids(pipeline)) == left
    assert noted(pipeline) == []


def test_a_lower_id_that_commits_later_is_taken_then(pipeline: Pipeline) -> None:
    """TRAPS 1: its rows stand before, between and behind those that were taken, and sweeping passes them over without waiting."""
    with pipeline.primary.engine.connect() as late:
        late.execute(text("INSERT INTO unit VALUES (90001, 'before', NULL)"))
        insert(pipeline, 1)
        late.execute(text("INSERT INTO unit VALUES (90002, 'between', NULL)"))
        insert(pipeline, 10_000)
        late.execute(text("INSERT INTO unit VALUES (90003, 'behind', NULL)"))
        pipeline.move()
        assert len(noted(pipeline)) == 2
        sweep(pipeline)
        pipeline.restart_relay()
        assert pipeline.relay.drain() is None
        insert(pipeline, 20_000)
        pipeline.move()
        late.commit()
    pipeline.move()
    assert pipeline.wrong() == []
    assert len(pipeline.secondary.rows("SELECT 1 FROM unit WHERE id > 90000")) == 3
    sweep(pipeline)
    assert ids(pipeline) == []


def test_runs_that_follow_each_other_are_one(pipeline: Pipeline) -> None:
    for number in range(5):
        insert(pipeline, 10_000 * number)
        pipeline.move()
    assert [last - first + 1 for first, last in noted(pipeline)] == [5 * MANY]
    assert pipeline.wrong() == []


def test_short_runs_and_too_many_are_removed_at_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is a condition of every look, and the rows take their room."""
    insert(pipeline, 1, 12_000)
    numbers = ids(pipeline)
    first = numbers[0]
    monkeypatch.setattr(taken, "_MOST_RUNS", 2)
    runs = take(
        pipeline, [*range(first, first + 999), *range(first + 1_000, first + 2_000), *range(first + 2_001, first + 3_001)]
    )
    assert runs == ((first + 1_000, first + 1_999), (first + 2_001, first + 3_000))
    runs = take(pipeline, range(first + 3_500, first + 5_000), runs)
    assert len(runs) == 2
    runs = take(pipeline, range(first + 3_001, first + 3_002), runs)
    runs = take(pipeline, range(first + 3_002, first + 3_500), runs)
    monkeypatch.setattr(taken, "_MOST_ROWS", 4_000)
    runs = take(pipeline, range(first + 2_000, first + 2_001), runs)
    assert take(pipeline, range(first + 5_000, first + 8_000), runs) == runs
    expected = {*range(first, first + 8_000)} - {first + 999}
    expected -= {one for begin, end in runs for one in range(begin, end + 1)}
    assert set(numbers) - set(ids(pipeline)) == expected
    sweep(pipeline)
    assert ids(pipeline) == [first + 999, *range(first + 8_000, first + 12_000)]


def test_a_note_that_is_not_ours_any_more_is_not_acted_upon(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 8: another service, which took over meanwhile, noted more behind it."""
    insert(pipeline, 1)
    pipeline.move()
    (run,) = noted(pipeline)
    pipeline.primary.execute(f"UPDATE stsync_taken SET last_id = {run[1] + 1}")
    insert(pipeline, 10_000)
    standing = ids(pipeline)
    monkeypatch.setattr(relay, "_SWEEP_AFTER_S", -1.0)
    with pytest.raises(Unavailable):
        pipeline.relay.sweep()
    with pytest.raises(Unavailable):
        pipeline.relay.drain()
    pipeline.relay.close()
    assert ids(pipeline) == standing
    assert noted(pipeline) == [(run[0], run[1] + 1)]
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_journal") == [(1,)]


@pytest.mark.parametrize("rows", [10, MANY, MANY + 5])
@pytest.mark.parametrize("when", ["at once", "by the next relay"])
def test_an_outbox_that_somebody_emptied_is_read_as_usual(
    pipeline: Pipeline, when: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ids begin anew, and may be what a note says is taken."""
    insert(pipeline, 1)
    pipeline.move()
    assert noted(pipeline)
    pipeline.primary.execute("TRUNCATE TABLE stsync_outbox")
    insert(pipeline, 10_000, rows)
    if when == "at once":
        monkeypatch.setattr(relay, "_SWEEP_AFTER_S", -1.0)
        pipeline.relay.sweep()
    else:
        pipeline.restart_relay()
    pipeline.move()
    assert len(noted(pipeline)) == (rows >= MANY)
    assert pipeline.wrong() == []


def test_uninstall_throws_nothing_away_that_the_journal_has(pipeline: Pipeline) -> None:
    insert(pipeline, 1)
    pipeline.move()
    insert(pipeline, 10_000, 7)
    with pipeline.primary.database.connect() as connection:
        assert capture.unfinished(connection) == ["thrown away: 7 changes that were not sent to any node yet"]


def test_a_look_passes_over_them(pipeline: Pipeline) -> None:
    """In id order, page by page, whatever stands before, between and behind."""
    insert(pipeline, 1, 9_000)
    numbers = ids(pipeline)
    first = numbers[0]
    runs = ((first + 20, first + 4_000), (first + 4_002, first + 8_990))
    database = pipeline.primary.database
    with database.connect(read_only=True) as connection:
        found = [number for page in outbox.pages(connection, database.dialect, 2_000, runs) for number in page.ids]
        connection.rollback()
        few = outbox.peek(connection, database.dialect, 2_000, ((first + 3, first + 8_990),))
    assert found == [*range(first, first + 20), first + 4_001, *range(first + 8_991, first + 9_000)]
    assert few is not None
    assert [row.id for row in few] == [*range(first, first + 3), *range(first + 8_991, first + 9_000)]
