"""A drain's memory is bounded: the outbox is read in pages of so many bytes, whatever one transaction wrote (DESIGN §10)."""

import pytest
from sqlalchemy import text

from publisher import outbox
from tests.pipeline import Pipeline

NOTE = "n" * 60_000
ROWS = 400


def test_a_page_holds_no_more_than_so_many_bytes_and_the_pages_hold_all(pipeline: Pipeline) -> None:
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    for begin in range(0, ROWS, 100):  # a statement is below any max_allowed_packet
        rows = ", ".join(f"({number}, 'name {number}', NULL, '{NOTE}', NULL)" for number in range(begin, begin + 100))
        pipeline.primary.execute(f"INSERT INTO account VALUES {rows}")
    database = pipeline.primary.database
    with database.connect(read_only=True) as connection:
        pages = [page.rows for page in outbox.pages(connection, database.dialect, 2_000)]
        connection.rollback()
    sizes = [sum(len(row.rows_json) for row in page) for page in pages]
    assert all(size <= 4 << 20 for size in sizes)
    assert len(pages) >= sum(sizes) >> 22
    assert sum(row.row_count for page in pages for row in page) == ROWS + 1
    pipeline.move()
    assert pipeline.wrong() == []


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_what_is_long_is_not_taken_with_what_is_short(pipeline: Pipeline) -> None:
    """A hundred rows are taken at once, whatever stands there: where one of them is long they are left for the pages."""
    database = pipeline.primary.database
    taken = database.dialect.take_sql()
    assert taken is not None
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    with database.connect() as connection:
        assert len(outbox.take(connection, taken, 2_000) or ()) == 1
        connection.rollback()
        connection.execute(text("UPDATE unit SET name = :long"), {"long": "x" * 70})
        connection.execute(text("INSERT INTO account VALUES (1, 'a', 1, :long, NULL)"), {"long": "x" * 70_000})
        connection.commit()
        assert outbox.take(connection, taken, 2_000) is None
        connection.rollback()
    pipeline.move()
    assert pipeline.wrong() == []


def test_what_is_read_in_part_is_no_snapshot_afterwards(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that ends in the middle, for whatever reason, must not have the next one see what is no more."""
    monkeypatch.setattr(outbox, "_PAGE_BYTES", 100)
    monkeypatch.setattr(outbox, "_ALIKE", 0)
    database = pipeline.primary.database
    with database.connect(read_only=True) as connection:
        for count in (40, 41):
            pipeline.primary.execute(
                *(f"INSERT INTO unit VALUES ({count}{one}, '{count}{one}', NULL)" for one in range(count))
            )
            pages = outbox.pages(connection, database.dialect, 2_000)
            ids = [number for _ in range(3) for number in next(pages).ids]
            connection.rollback()
            pipeline.primary.execute(f"DELETE FROM stsync_outbox WHERE id <= {ids[-1]}")
            found = [number for page in outbox.pages(connection, database.dialect, 2_000) for number in page.ids]
            connection.rollback()
            assert found == [number for (number,) in pipeline.primary.rows("SELECT id FROM stsync_outbox ORDER BY id")]
            assert min(found) > ids[-1]
            pipeline.primary.execute("DELETE FROM stsync_outbox")
