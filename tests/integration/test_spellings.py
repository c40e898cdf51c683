"""Which spellings of a key are of one row says the database's own `=`, of whatever type and collation the key is (TRAPS 29, 30)."""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from common.dialects import mariadb
from common.dialects.sqlite_writer import SqliteWriter
from common.errors import NotApplicable
from consumer.replay import Replayer
from consumer.spellings import spelled_freely
from tests.integration.conftest import MakePipeline

LEVEL_1 = "CREATE COLLATION level1 (provider = icu, locale = 'und-u-ks-level1', deterministic = false)"
LEVEL_2 = "CREATE COLLATION level2 (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
PREPARED = {"postgresql": (LEVEL_1, LEVEL_2, "CREATE EXTENSION citext")}
TYPES = {
    "sqlite": ("TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM", "", "VARCHAR(20) COLLATE NOCASE", "BLOB COLLATE NOCASE"),
    "mariadb": (
        "VARCHAR(20) COLLATE utf8mb4_general_ci",
        "VARCHAR(20) COLLATE utf8mb4_unicode_ci",
        "VARCHAR(20) COLLATE utf8mb4_unicode_nopad_ci",
        "VARCHAR(20) COLLATE utf8mb4_bin",
        "VARCHAR(20) COLLATE utf8mb4_german2_ci",
        "VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci",
        "CHAR(20) COLLATE utf8mb4_unicode_520_ci",
        "DOUBLE",
        "FLOAT",
    ),
    "postgresql": (
        "citext",
        "varchar(20) COLLATE level1",
        "text COLLATE level2",
        "char(20) COLLATE level1",
        "numeric",
        "double precision",
        "real",
        "interval",
        "jsonb",
    ),
}
TEXTS = (
    "a A á Á ä æ ae AE ß ss SS ẞ ａ i I ı İ σ ς Σ é e\N{COMBINING ACUTE ACCENT} 😀 😁 \N{ZERO WIDTH SPACE}a a\N{SOFT HYPHEN} Ä"
    ' A\N{COMBINING DIAERESIS} \\ \\a b\\ [ { " 1 01 1.0 1e0 100e-2 -0 0 -0.0 0.1 0.10000000149011612 16777216 16777217 NaN Infinity'
    " 10.0.0.1 10.0.0.1/32 ::ffff:a00:1 24:00:00"
)
SPACED = ("", " ", "a ", "a  ", " a", "a\t", "\t", "1 ", "1 day", "1 mon", "30 days", '{"a": 1}', '{ "a":1.0 }')
VALUES = (*TEXTS.split(" "), *SPACED, 1, 1.0, 5, 5.0)


@pytest.mark.parametrize(("database", "kind"), [(name, kind) for name, kinds in TYPES.items() for kind in kinds])
def test_keys_are_told_apart_as_the_database_does(new_pipeline: MakePipeline, database: str, kind: str) -> None:
    pipeline = new_pipeline(
        database,
        *PREPARED.get(database, ()),
        f"CREATE TABLE t (id {kind} NOT NULL PRIMARY KEY, v INT)",
        f"CREATE TABLE every (place INT NOT NULL, id {kind} NOT NULL)",
        tables="t\n",
    )
    secondary, dialect = pipeline.secondary, pipeline.applier_database.dialect
    for place, value in enumerate(VALUES):
        with suppress(DBAPIError):  # the type knows no such value
            secondary.execute("INSERT INTO every VALUES (:place, :value)", place=place, value=value)
    table = pipeline.lists.present.tables["t"]
    assert spelled_freely(table)
    written = dialect.row([("e.id", table.key[0])])
    with pipeline.applier_database.open() as connection:
        statement = f"SELECT place, {written} FROM every e ORDER BY place"
        rows = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).all()
        keys = {place: str(row)[1:-1] for place, row in rows}
        equal = "SELECT x.place, y.place FROM every x JOIN every y ON x.id = y.id"
        expected = {tuple(row) for row in connection.exec_driver_sql(equal)}
        found = []
        for first in (0, len(keys) // 2, len(keys)):  # so many are known before the others are asked for
            spellings = Replayer(dialect, {"t": table}, 1 << 20).spellings(connection)
            spellings.keep(table, [*keys.values()][:first])
            if first == len(keys) // 2:
                spellings.keep(table, [*keys.values()][first:])
            names = dict(zip(keys, spellings.names(table, [*keys.values()]), strict=True))
            found.append({(x, y) for x in keys for y in keys if names[x] == names[y]})
        none_known, *known = found
    assert len(expected) > len(keys) > 2, "some are equal"
    assert known == [expected, expected]
    assert none_known == {(x, y) for x in keys for y in keys if keys[x] == keys[y]}


def test_what_cannot_be_a_key_is_like_no_other(new_pipeline: MakePipeline, database_kind: str) -> None:
    kind = {"sqlite": "TEXT COLLATE RTRIM", "mariadb": "VARCHAR(9) COLLATE utf8mb4_bin", "postgresql": "numeric"}[
        database_kind
    ]
    pipeline = new_pipeline(database_kind, f"CREATE TABLE t (id {kind} NOT NULL PRIMARY KEY, v INT)", tables="t\n")
    table = pipeline.lists.present.tables["t"]
    bad = {"sqlite": "99999999999999999999", "mariadb": '"a          b"', "postgresql": '"one"'}[database_kind]
    good = ['"1.0"', '"1"'] if database_kind == "postgresql" else ['"a "', '"a"']
    with pipeline.applier_database.open() as connection:
        spellings = Replayer(pipeline.applier_database.dialect, {"t": table}, 1 << 20).spellings(connection)
        spellings.keep(table, [good[0], bad, *(f'"{number}"' for number in range(40, 60))])
        assert spellings.names(table, [good[1], bad, '"41"']) == [good[0], bad, '"41"']


def test_of_long_keys_all_counts(new_pipeline: MakePipeline) -> None:
    """MariaDB sorts by the first max_sort_length bytes only."""
    kind = "VARCHAR(700) COLLATE utf8mb4_unicode_ci"
    pipeline = new_pipeline("mariadb", f"CREATE TABLE t (id {kind} NOT NULL PRIMARY KEY, v INT)", tables="t\n")
    table = pipeline.lists.present.tables["t"]
    chance = random.Random(1)
    keys = [f'"{690 * chance.choice("éÉ")}{chance.randrange(500)}"' for _ in range(3000)]
    with pipeline.applier_database.open() as connection:
        spellings = Replayer(pipeline.applier_database.dialect, {"t": table}, 1 << 20).spellings(connection)
        spellings.keep(table, keys)
        names = dict(zip(keys, spellings.names(table, keys), strict=True))
    assert len(set(names.values())) == len({key.lower() for key in keys}) > 490
    assert all(key.lower() == name.lower() for key, name in names.items())


def test_a_small_sort_buffer_is_no_obstacle(new_pipeline: MakePipeline) -> None:
    """MariaDB sorts nothing where fifteen values have no room: an error that would stop all of replay."""
    kind = "VARCHAR(700) COLLATE utf8mb4_unicode_ci"
    pipeline = new_pipeline("mariadb", f"CREATE TABLE t (id {kind} NOT NULL PRIMARY KEY, v INT)", tables="t\n")
    table = pipeline.lists.present.tables["t"]
    with pipeline.applier_database.open() as connection:
        connection.exec_driver_sql("SET sort_buffer_size = 32768")
        spellings = Replayer(pipeline.applier_database.dialect, {"t": table}, 1 << 20).spellings(connection)
        spellings.keep(table, [f'"{600 * "é"}{number}"' for number in range(100)])
        assert spellings.names(table, [f'"{600 * "É"}7"']) == [f'"{600 * "é"}7"']


def test_where_too_much_cannot_be_read_nothing_fails(new_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are then told apart by how they are spelled."""
    pipeline = new_pipeline("sqlite", "CREATE TABLE t (id TEXT COLLATE NOCASE PRIMARY KEY, v INT)", tables="t\n")
    table = pipeline.lists.present.tables["t"]
    asked = []

    def few(_writer: SqliteWriter, _cursor: Any, keys: Sequence[str]) -> list[int]:
        asked.append(len(keys))
        if len(keys) > 3:
            raise NotApplicable("too large for one statement")
        return [0 for _ in keys]

    monkeypatch.setattr(SqliteWriter, "alike", few)
    keys = [f'"{letter}{number}"' for number in range(500) for letter in "aA"]
    with pipeline.applier_database.open() as connection:
        spellings = Replayer(pipeline.applier_database.dialect, {"t": table}, 1 << 20).spellings(connection)
        spellings.keep(table, keys)
        assert spellings.names(table, keys) == keys
    assert len(asked) < 110


def test_what_is_said_of_printable_ascii_holds_in_every_collation(new_pipeline: MakePipeline) -> None:
    """schema.Equality: where it is `folded`, such texts are equal only without case and spaces at the end."""
    pipeline = new_pipeline("mariadb", "CREATE TABLE t (id INT PRIMARY KEY)", tables="t\n")
    letters = [chr(code) for code in range(32, 127)]
    texts = [*letters, *(a + b for a in letters for b in letters), *(f"x{a}y" for a in letters)]
    pipeline.secondary.execute(
        "CREATE TABLE texts (id INT PRIMARY KEY, text VARBINARY(10))",
        "INSERT INTO texts SELECT * FROM JSON_TABLE(:rows, '$[*]' COLUMNS (n INT PATH '$[0]', t VARCHAR(10) PATH '$[1]')) j",
        rows=json.dumps(list(enumerate(texts))),
    )
    names = "SELECT COLLATION_NAME, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY"
    collations = pipeline.secondary.rows(f"{names} WHERE FULL_COLLATION_NAME NOT LIKE '%\\_cs' ORDER BY FULL_COLLATION_NAME")
    wrong = []
    with pipeline.secondary.engine.connect() as connection:
        for collation, charset in collations:
            full = collation if collation.startswith(charset) or collation == "binary" else f"{charset}_{collation}"
            if (
                charset in {"ucs2", "utf16", "utf16le", "utf32", "binary"}
                or mariadb._equality("varchar(10)", full) != "folded"
            ):
                continue
            value = f"CONVERT(CONVERT(text USING ascii) USING {charset}) COLLATE {full}"
            ranks = f"SELECT id, DENSE_RANK() OVER (ORDER BY {value}) FROM texts"
            alike: dict[int, set[str]] = {}
            for place, rank in connection.exec_driver_sql(ranks):
                alike.setdefault(rank, set()).add(texts[place].lower().rstrip(" "))
            wrong += [(full, sorted(some)) for some in alike.values() if len(some) > 1]
    assert len(collations) > 200
    assert wrong == []
