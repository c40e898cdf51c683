"""A drain's memory is bounded: the outbox is read in pages of so many bytes, whatever one transaction wrote (DESIGN §10)."""

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
        pages = list(outbox.pages(connection, database.dialect, 2_000))
        connection.rollback()
    sizes = [sum(len(row.rows_json) for row in page) for page in pages]
    assert all(size <= 4 << 20 for size in sizes)
    assert len(pages) >= sum(sizes) >> 22
    assert sum(row.row_count for page in pages for row in page) == ROWS + 1
    pipeline.move()
    assert pipeline.wrong() == []
