"""PostgreSQL: rows that are copied in are those that an INSERT would have made of the same JSON (TRAPS 27, 30, 32)."""

import random
from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
import pytest
from sqlalchemy.engine import Connection

from common.database import Database
from common.dialects import postgresql_writer
from common.dialects.base import raw_cursor
from common.dialects.json_writer import JsonWriter
from common.dialects.postgresql import Postgresql
from common.dialects.postgresql_writer import PostgresqlWriter, as_csv
from common.schema import ListedTable
from common.settings import DatabaseSettings
from tests.conftest import NewDatabase
from tests.pipeline import Pipeline

COLUMNS = (
    'id INT PRIMARY KEY, "te,""xt%%" TEXT, v VARCHAR(12), c CHAR(4), n NUMERIC(10, 2), a TEXT[], j JSON, b BYTEA, t TIMESTAMPTZ(3),'
    " i INTERVAL, f FLOAT8, q BOOLEAN"
)
PLAIN = ("id", "te", "v", "c", "n", "a", "j", "b", "t", "i", "f", "q")
NAMES = ("id", '"te,""xt%%"', *PLAIN[2:])
WORDS = [
    "",
    "null",
    "NULL",
    '"',
    '""',
    "\\",
    "\\.",
    "\\N",
    ",",
    "],\n[",
    "\n",
    "\r\n",
    "\t",
    "a, b",
    "é\U0001f600",
    "\x01",
    "\x7f",
]


def spelled(maker: random.Random) -> list[Any]:
    word = "".join(maker.choices(WORDS, k=maker.randrange(4)))
    short = "".join(maker.choices(["a", '"', "\\", ",", " "], k=maker.randrange(12)))
    values = [
        word,
        short,
        short[:4],
        str(maker.randrange(10**9) / 100),
        [word, None, short, ""],
        '{"k": "\\"\\\\ ],\\n["}',
        maker.randbytes(maker.randrange(5)),
        f"2024-03-{maker.randrange(1, 29):02} 02:30:00.123456+0{maker.randrange(9)}",
        "1 year -2 months 3 days 04:05:06.789",
        maker.choice([0.1, -0.0, float("inf"), 1e-320]),
        maker.choice([True, False]),
    ]
    return [None if maker.random() < 0.2 else value for value in values]


@pytest.fixture
def connection(new_database: NewDatabase) -> Iterator[Connection]:
    with Database(DatabaseSettings(url=new_database("postgresql"))).connect() as found:  # type: ignore[arg-type]
        for name in ("made", "copied", "inserted"):
            found.exec_driver_sql(f"CREATE TABLE {name} ({COLUMNS})")
        found.commit()
        yield found


def writer(connection: Connection, name: str, **options: Any) -> PostgresqlWriter:
    listed = ListedTable(Postgresql().tables(connection)[name], **options)
    return PostgresqlWriter(listed, [column.name for column in listed.columns])


def rows_of(connection: Connection, *where: str) -> str:
    values = ", ".join(f"{name}::text" for name in NAMES)
    found = connection.exec_driver_sql(
        f"SELECT string_agg(array_to_json(ARRAY[{values}])::text, E',\\n' ORDER BY id) FROM made {' '.join(where)}"
    ).scalar_one()
    assert isinstance(found, str)
    return found


def insert_plainly(connection: Connection, into: PostgresqlWriter, rows: str) -> int:
    return JsonWriter.insert(into, raw_cursor(connection), rows)


def test_values_are_those_of_an_insert(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_writer, "MANY", 0)
    maker = random.Random(20)
    marks = ", ".join(["%s"] * len(NAMES))
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        cursor.executemany(f"INSERT INTO made VALUES ({marks})", [[number, *spelled(maker)] for number in range(1000)])
    copied, inserted = writer(connection, "copied"), writer(connection, "inserted")
    ways: list[bool] = []
    for number in range(0, 1000, 2):  # two by two, so that one odd row does not decide for all
        rows = rows_of(connection, f"WHERE id / 2 = {number // 2}")
        ways.append(as_csv(rows) is not None)
        assert copied.insert(raw_cursor(connection), rows) == 2
        assert insert_plainly(connection, inserted, rows) == 2
    assert ways.count(True) > 100
    for table in ("copied", "inserted"):
        for left, right in ((table, "made"), ("made", table)):
            texts = [f"ARRAY[{', '.join(f'{name}::text' for name in NAMES)}] FROM {one}" for one in (left, right)]
            assert connection.exec_driver_sql(f"SELECT {texts[0]} EXCEPT SELECT {texts[1]}").all() == []


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("v", "thirteen char", psycopg.errors.StringDataRightTruncation),
        ("n", "1e9", psycopg.errors.NumericValueOutOfRange),
        ("n", "", psycopg.errors.InvalidTextRepresentation),
        ("id", None, psycopg.errors.NotNullViolation),
        ("id", "7", psycopg.errors.UniqueViolation),
    ],
)
def test_what_an_insert_refuses_is_refused(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, column: str, value: str | None, error: type[psycopg.Error]
) -> None:
    monkeypatch.setattr(postgresql_writer, "MANY", 0)
    connection.exec_driver_sql("INSERT INTO copied (id) VALUES (7)")
    connection.commit()
    into = writer(connection, "copied")
    row = [value if name == column else {"id": "1", "te": "x"}.get(name) for name in PLAIN]
    rows = orjson.dumps(row).decode()
    assert as_csv(rows) is not None
    with pytest.raises(error):
        into.insert(raw_cursor(connection), rows)
    connection.rollback()
    with pytest.raises(error):
        insert_plainly(connection, into, rows)


@pytest.mark.parametrize(
    "where", ["n > 5", "n > 5 AND id IN (SELECT generate_series(1, 100))"], ids=["plain", "with a subquery"]
)
def test_rows_outside_of_the_row_filter_are_not_taken(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(postgresql_writer, "MANY", 0)
    connection.exec_driver_sql("INSERT INTO made (id, n) VALUES (1, 5), (2, 6), (3, NULL), (4, 70)")
    into = writer(connection, "copied", where=where)
    assert into.insert(raw_cursor(connection), rows_of(connection)) == 2
    assert connection.exec_driver_sql("SELECT id FROM copied ORDER BY id").scalars().all() == [2, 4]


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_many_rows_of_one_statement_are_copied(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they come from the triggers, through the relay, with excluded columns that stay as they are here."""
    ways: list[bool] = []

    def watched(rows: str) -> str | None:
        found = as_csv(rows)
        ways.append(found is not None)
        return found

    monkeypatch.setattr(postgresql_writer, "as_csv", watched)
    pipeline.primary.execute(
        "INSERT INTO account SELECT i, 'name ' || i, NULL, repeat('n', 60), 'here' FROM generate_series(1, 3000) i"
    )
    pipeline.move()
    assert pipeline.wrong() == []
    assert ways
    assert all(ways)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_parent_is_there_before_its_children_are_copied_in(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN §7: a change set of a size where some statements would be collected, to run with the commit, and others copied in."""
    monkeypatch.setattr(Connection, "begin_nested", lambda *_: pytest.fail("it was refused at first"))
    for number, size in enumerate((5, 20, 60, 75)):
        pipeline.primary.execute(
            f"INSERT INTO account VALUES ({number}, 'a{number}', NULL, NULL, NULL)",
            f"INSERT INTO login SELECT {number}, 'l' || i, repeat('x', {size}) FROM generate_series(1, 500) i",
        )
        pipeline.move()
    monkeypatch.undo()
    assert pipeline.wrong() == []


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(["CREATE RULE r AS ON INSERT TO copied DO ALSO INSERT INTO made (id) VALUES (NEW.id)"], id="a rule"),
        pytest.param(["ALTER TABLE copied ENABLE ROW LEVEL SECURITY"], id="row security"),
        pytest.param(
            [
                "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
                "CREATE TRIGGER t BEFORE INSERT ON copied FOR EACH ROW EXECUTE FUNCTION same()",
            ],
            id="a trigger for which the server's log quotes rows",
        ),
        pytest.param(
            ["CREATE DOMAIN known AS INT NOT NULL", "ALTER TABLE copied ADD COLUMN k known DEFAULT 0"], id="a strict domain"
        ),
        pytest.param(
            [
                "CREATE TYPE pair AS (a TEXT, b TEXT)",
                "CREATE FUNCTION turned(text) RETURNS pair LANGUAGE sql AS 'SELECT ROW($1, $1)::pair'",
                "CREATE CAST (text AS pair) WITH FUNCTION turned(text)",
                "ALTER TABLE copied ADD COLUMN k pair",
            ],
            id="a cast of its own",
        ),
    ],
)
def test_where_copy_means_something_else_rows_are_inserted(connection: Connection, statements: list[str]) -> None:
    assert Postgresql().tables(connection)["copied"].copyable
    for statement in statements:
        connection.exec_driver_sql(statement)
    assert not Postgresql().tables(connection)["copied"].copyable


def test_a_table_that_is_not_copyable_is_not_copied_into(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_writer, "MANY", 0)
    connection.exec_driver_sql("CREATE RULE r AS ON INSERT TO copied DO ALSO INSERT INTO inserted (id) VALUES (NEW.id)")
    connection.exec_driver_sql("INSERT INTO made (id, v) VALUES (1, 'x')")
    assert writer(connection, "copied").insert(raw_cursor(connection), rows_of(connection)) == 1
    assert connection.exec_driver_sql("SELECT id FROM inserted").scalars().all() == [1]
