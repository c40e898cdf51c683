"""Neighbours in the outbox that differ in nothing but their values are read as one where that is quicker, and only those."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from common.dialects import mariadb_outbox
from consumer.replay import Replayer
from publisher import outbox
from publisher.outbox import Page
from tests.pipeline import Pipeline

MANY = 3_000
SPACED = [
    '["70","b",null] ,\n[ "7" , "a\\"),(\\"9" , "70" ]',
    '["70","b",null],\n["7","a\\"),(\\"9","70"] ',
    '[ "70","b",null],\n["7","a\\"),(\\"9","70"\n]',
]
OF_UNITS = (
    "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
    " VALUES ('unit', 'I', :c, :r, :n, 1)"
)
COLUMNS = '["id","name","parent"]'


def units(first: int, last: int) -> str:
    return "INSERT INTO unit VALUES " + ", ".join(f"({one}, 'unit {one}', NULL)" for one in range(first, last))


def pages(pipeline: Pipeline) -> list[Page]:
    database = pipeline.primary.database
    with database.connect(read_only=True) as connection:
        found = list(outbox.pages(connection, database.dialect, 2_000))
        connection.rollback()
    return found


def ids(pipeline: Pipeline) -> list[int]:
    return [number for (number,) in pipeline.primary.rows("SELECT id FROM stsync_outbox ORDER BY id")]


def changes(found: Sequence[Page]) -> list[tuple[str, ...]]:
    return [
        (row.table_name, row.kind, row.columns_json, one)
        for page in found
        for row in page.rows
        for one in (row.rows_json.split(",\n") if row.row_count else [])
    ]


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_many_alike_are_few_rows(pipeline: Pipeline) -> None:
    pipeline.primary.execute(units(0, MANY))
    found = pages(pipeline)
    assert sum(len(page.rows) for page in found) < 25
    assert [number for page in found for number in page.ids] == ids(pipeline)
    assert [row for *_, row in changes(found)] == [f'["{one}", "unit {one}", null]' for one in range(MANY)]


AMONG = {
    "a change of another kind": ["UPDATE unit SET name = 'other' WHERE id = 3"],
    "a change of another table": ["INSERT INTO account VALUES (1, 'a', NULL, NULL, NULL)"],
    "a hole": ["DELETE FROM stsync_outbox WHERE id = (SELECT v FROM (SELECT max(id) AS v FROM stsync_outbox) x)"],
    "what no change came of": ["UPDATE stsync_outbox SET row_count = 0 WHERE id % 100 = 7"],
    "a program's": ["UPDATE stsync_outbox SET canonical = 0 WHERE id % 100 = 7"],
    "another spelling": ["UPDATE stsync_outbox SET table_name = 'Unit' WHERE id % 100 = 7"],
    "a space more": ["UPDATE stsync_outbox SET columns_json = CONCAT(columns_json, ' ') WHERE id % 100 = 7"],
}


@pytest.mark.parametrize("what", AMONG)
@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_what_is_not_alike_keeps_its_place(pipeline: Pipeline, what: str) -> None:
    """TRAPS 1: in id order, each with its own table, kind and columns."""
    pipeline.primary.execute(units(0, 400), *AMONG[what], units(400, 700))
    database = pipeline.primary.database
    with database.connect(read_only=True) as connection:
        cursor = connection.connection.cursor()
        singly = outbox.page_of(outbox.Row(*row) for row in database.dialect.read_outbox(cursor, 0, 2_000))
        cursor.close()
    found = pages(pipeline)
    assert changes(found) == changes([singly])
    assert [number for page in found for number in page.ids] == ids(pipeline)
    assert len(singly.rows) > 690


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_what_the_server_would_cut_short_is_whole(pipeline: Pipeline) -> None:
    """Rows that became long: what was expected of those before would be more than the server joins."""
    pipeline.primary.execute(units(0, 200))
    with pipeline.primary.engine.connect() as connection:
        for one in range(60):
            connection.execute(
                text("INSERT INTO account VALUES (:i, :n, NULL, :v, NULL)"),
                {"i": one, "n": f"ä{one}", "v": "ü" * (10 if one < 20 else 30_000)},
            )
        connection.commit()
    assert [number for page in pages(pipeline) for number in page.ids] == ids(pipeline)
    pipeline.move()
    assert pipeline.wrong() == []


LATE = ",\n".join(f'{" " * (one > 300)}["{one}","{"n" * 1000}{one}",null]' for one in range(700))
BAD = {
    "as of two rows": '["7","a",null],\n["8","b",null]',
    "with a separator within": '["7",\n"a",null]',
    "no array": '"7"',
    "no array, with a separator": '"7",\n"a"',
    "nothing": "",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_row_takes_none_of_its_neighbours_along(pipeline: Pipeline, bad: str) -> None:
    """README, the outbox contract: a program wrote it where triggers write; it alone is set aside."""
    for time, place in enumerate((outbox.FEW, 60, 119), 1):
        pipeline.primary.execute("DELETE FROM unit")
        pipeline.move()
        singly = [f"INSERT INTO unit VALUES ({one}, 'unit {one}', NULL)" for one in range(120)]
        pipeline.primary.execute(*singly[:place])
        pipeline.primary.execute(OF_UNITS, c=COLUMNS, r=bad, n=1)
        pipeline.primary.execute(*singly[place:])
        pipeline.move()
        assert pipeline.wrong() == [], place
        assert pipeline.primary.rows("SELECT rows_json FROM stsync_rejected") == [(bad,)] * time, place
        assert pipeline.secondary.rows("SELECT count(*) FROM unit") == [(120,)], place


@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_a_program_says_of_the_number_of_its_rows_makes_no_difference(pipeline: Pipeline, count: int) -> None:
    """README, the outbox contract: such a change is no place that a trigger kept and did not need."""
    by_program = OF_UNITS.replace(", 1)", ", 0)")
    pipeline.primary.execute(by_program, c=COLUMNS, r='["7","a",null],["8","b",null]', n=count)
    pipeline.primary.execute(by_program, c=COLUMNS, r='["9","c"]', n=count)
    pipeline.move()
    assert pipeline.secondary.rows("SELECT id FROM unit ORDER BY id") == [(7,), (8,)]
    assert pipeline.primary.rows("SELECT rows_json FROM stsync_rejected") == [('["9","c"]',)]


def test_a_long_bad_row_is_set_aside_too(pipeline: Pipeline) -> None:
    """README, the outbox contract; TRAPS 29: a row that is cut into several frames must begin each of them as a frame begins."""
    pipeline.primary.execute(OF_UNITS, c=COLUMNS, r=LATE, n=700)
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    pipeline.move()
    assert pipeline.wrong() == []
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_rejected") == [(1,)]
    assert pipeline.secondary.rows("SELECT id FROM unit") == [(1,)]


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_many_bad_rows_that_became_long_are_set_aside(pipeline: Pipeline) -> None:
    """In statements that a server takes whatever its max_allowed_packet is."""
    with pipeline.primary.engine.connect() as connection:
        for one in range(500):
            bad = f'["{one}","{chr(92)}"{"n" * (100 if one < 20 else 2_000)}",null]'
            connection.execute(text(OF_UNITS.replace("'I'", "'X'")), {"c": COLUMNS, "r": bad, "n": 1})
        connection.commit()
    pipeline.move()
    assert pipeline.primary.rows("SELECT max(length(rows_json)) < 500000, count(*) > 1 FROM stsync_rejected") == [(1, 1)]
    assert ids(pipeline) == []


@pytest.mark.parametrize("database_kind", ["mariadb"])
@pytest.mark.parametrize("every", [20, 200, 1000])
def test_what_is_not_found_alike_is_not_looked_for_again_and_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """To look in vain costs nearly as much as to read."""
    for first in range(0, 12_000, every):
        pipeline.primary.execute(units(first, first + every), f"UPDATE unit SET name = 'other {first}' WHERE id = {first}")
    looked: list[bool] = []
    plain = mariadb_outbox.read_alike

    def counted(*given: Any) -> tuple[int, str] | None:
        looked.append((found := plain(*given)) is not None)
        return found

    monkeypatch.setattr(mariadb_outbox, "read_alike", counted)
    found = pages(pipeline)
    assert [number for page in found for number in page.ids] == ids(pipeline)
    assert looked.count(False) <= len(found) / 2 + 2


@pytest.mark.parametrize("spaced", SPACED)
def test_rows_may_be_spaced_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, spaced: str) -> None:
    """A program may write as triggers do, and JSON as it likes; it is no reason to replay another way."""

    def apply(*_: object, **__: object) -> None:
        raise AssertionError("not at once")

    monkeypatch.setattr(Replayer, "apply", apply)
    pipeline.primary.execute(
        "INSERT INTO unit VALUES (7, 'a\"),(\"9', NULL), (70, 'b', NULL)", "UPDATE unit SET parent = 70 WHERE id = 7"
    )
    pipeline.primary.execute("DELETE FROM stsync_outbox")
    pipeline.primary.execute(OF_UNITS, c=COLUMNS, r=spaced, n=2)
    pipeline.move()
    assert pipeline.wrong() == []


def test_few_after_many_and_none_after_few(pipeline: Pipeline) -> None:
    pipeline.primary.execute(units(0, MANY))
    drained = pipeline.relay.drain()
    assert drained is not None
    assert drained.changes == MANY
    for one in range(3):
        pipeline.primary.execute(f"UPDATE unit SET name = 'again {one}' WHERE id = 5")
        drained = pipeline.relay.drain()
        assert drained is not None
        assert drained.changes == 1
        assert pipeline.relay.drain() is None
        assert pipeline.waiting() == 0
