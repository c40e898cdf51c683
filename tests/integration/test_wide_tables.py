"""A table may be as wide as its database has it."""

import pytest

from tests.integration.conftest import MakePipeline

WIDEST = {"sqlite": ("TEXT", 1_999), "mariadb": ("TINYINT", 1_000), "postgresql": ("INT", 1_599)}


@pytest.mark.parametrize("part", [4, 1], ids=["a quarter", "all"])
def test_the_widest_table_is_captured(new_pipeline: MakePipeline, database_kind: str, part: int) -> None:
    kind, most = WIDEST[database_kind]
    columns = ", ".join(f"column_number_{place} {kind}" for place in range(most // part))
    pipeline = new_pipeline(database_kind, f"CREATE TABLE t (id INT NOT NULL PRIMARY KEY, {columns})", tables="t\n")
    for change in (
        "INSERT INTO t (id, column_number_3) VALUES (1, 1), (2, 2)",
        f"UPDATE t SET column_number_5 = 2, column_number_{most // part - 1} = 3",
        "UPDATE t SET id = 3 WHERE id = 2",
        "DELETE FROM t WHERE id = 1",
    ):
        pipeline.primary.execute(change)
        pipeline.move()
        assert pipeline.wrong() == [], change
    assert pipeline.secondary.rows("SELECT id, column_number_3, column_number_5 FROM t") == [
        (3, *map(type_of(kind), (2, 2)))
    ]


def type_of(kind: str) -> type[int] | type[str]:
    return str if kind == "TEXT" else int
