"""What a full synchronization reads: digests that differ exactly where rows do, and rows as the capture triggers write them."""

import json
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import reduce
from operator import xor
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from common.catalog import listed_tables
from common.changes import SEPARATOR, Frame, Kind, keys_of
from common.database import Database
from common.digests import Bucket
from common.errors import NotApplicable, Unavailable
from common.schema import ListedTable
from common.settings import DatabaseSettings
from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.integration.conftest import MakePipeline
from tests.integration.test_values import ALIKE, MARIADB, POSTGRESQL, SQLITE, schema

NUMBER = 64
TYPES = {
    "postgresql": [
        "CREATE TYPE mood AS ENUM ('ok', 'it''s, \"fine\"')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(4)",
    ]
}
VALUES = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "sqlite": SQLITE}
LONG = {"sqlite": "TEXT", "postgresql": "TEXT", "mariadb": "LONGTEXT"}
BYTES = {"sqlite": "BLOB", "postgresql": "BYTEA", "mariadb": "VARBINARY(20)"}
FOLDED = {
    "sqlite": "VARCHAR(20) COLLATE NOCASE",
    "postgresql": "VARCHAR(20) COLLATE folded",
    "mariadb": "VARCHAR(20) COLLATE utf8mb4_general_ci",
}
COLLATION = "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
Reader = Callable[[Connection, ListedTable, list[str]], Any]


@dataclass
class Place:
    """A table of a database, as its node reads it."""

    database: Database
    table: ListedTable
    columns: list[str]

    def execute(self, *statements: str, values: Sequence[Mapping[str, Any]] = ()) -> None:
        with self.database.connect() as connection:
            for statement in statements:
                connection.execute(text(statement), *([values] if values else []))
            connection.commit()

    def read(self, how: str, *more: Any, writing: bool = False) -> Any:
        """What a method of SnapshotDialect says; all of it, where it yields."""
        with self.database.connect(read_only=not writing) as connection:
            found = getattr(self.database.dialect, how)(connection, self.table, *more)
            return list(found) if isinstance(found, Iterator) else found

    def buckets(self, number: int = NUMBER) -> dict[int, Bucket]:
        found: dict[int, Bucket] = self.read("buckets", self.columns, number)
        return found

    def digests(self, wanted: Sequence[int] = range(NUMBER), number: int = NUMBER) -> dict[str, bytes]:
        """Key to digest."""
        return {key: one for some in self.read("row_digests", self.columns, number, wanted) for key, one in some}

    def rows(self, max_bytes: int = 1 << 20) -> list[str]:
        return split(self.read("rows", self.columns, max_bytes))

    def rows_of(self, keys: Sequence[str], max_bytes: int = 1 << 20) -> list[str]:
        return split(self.read("rows_of", self.columns, keys, max_bytes))

    def bucket_of(self, key: str) -> int:
        (found,) = (place for place in self.buckets() if key in self.digests([place]))
        return found


def split(portions: Sequence[tuple[int, str]]) -> list[str]:
    for number, rows in portions:
        assert rows.count(SEPARATOR) == number - 1
    return [row for _, rows in portions for row in rows.split(SEPARATOR)]


def changed(before: Mapping[int, Bucket], after: Mapping[int, Bucket]) -> set[int]:
    return {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}


MakePlace = Callable[..., Place]


@pytest.fixture
def new_place(new_database: NewDatabase) -> MakePlace:
    """Makes a database with a table: `(kind, *statements, name=…, where=…, exclude=…, columns=…)`."""

    def make(kind: str, *statements: str, name: str = "v", where: str | None = None, exclude: Sequence[str] = (),
             columns: Sequence[str] | None = None) -> Place:  # fmt: skip
        database = Database(DatabaseSettings(url=new_database(kind)))  # type: ignore[arg-type]
        with database.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            connection.commit()
            table = ListedTable(database.dialect.tables(connection)[name], where, frozenset(exclude))
        return Place(database, table, list(columns or (column.name for column in table.columns)))

    return make


def q(kind: str, name: str) -> str:
    return f"`{name}`" if kind == "mariadb" else f'"{name}"'


def key(place: Place, *values: Any) -> str:
    """A key's JSON text."""
    typed = place.database.dialect.name == "sqlite"
    return ",".join(json.dumps(v if typed else str(v), ensure_ascii=False) for v in values)


def test_any_value_changes_the_digest_of_its_bucket(database_kind: str, new_place: MakePlace) -> None:
    """TRAPS 30: each type's values, from NULL and from each other."""
    columns = VALUES[database_kind]
    numbered = list(enumerate(((name, one) for name, (_, found) in columns.items() for one in found), 1))
    place = new_place(database_kind, *TYPES.get(database_kind, ()), schema(columns))
    place.execute(*[f"INSERT INTO v (id) VALUES ({number})" for number, _ in numbered])
    buckets, digests = place.buckets(), {}
    homes = {one: home for home in buckets for one in place.digests([home])}
    for number, (name, value) in numbered:
        place.execute(f"UPDATE v SET {name} = {value.replace(':', chr(92) + ':')} WHERE id = {number}")
        after = place.buckets()
        assert changed(buckets, after) == {homes[key(place, number)]}, (name, value)
        buckets = after
    for name, (_, found) in columns.items():  # of one key, so that nothing else can be told
        seen = set()
        for value in ("NULL", *found):
            place.execute("DELETE FROM v", f"INSERT INTO v (id, {name}) VALUES (1, {value.replace(':', chr(92) + ':')})")
            digests = place.digests()
            seen.add(digests[key(place, 1)])
        assert len(seen) == len(found) + 1, name


def test_equal_rows_have_equal_digests_wherever_their_columns_stand(database_kind: str, new_place: MakePlace) -> None:
    """Inserted in another order, with other settings of the writer's, on a node whose columns stand in another order."""
    columns = VALUES[database_kind]
    values = [(name, one.replace(":", r"\:")) for name, (_, found) in columns.items() for one in found]
    inserts = [f"INSERT INTO v (id, {name}) VALUES ({number}, {one})" for number, (name, one) in enumerate(values)]
    types = TYPES.get(database_kind, ())
    here = new_place(database_kind, *types, schema(columns))
    there = new_place(database_kind, *types, schema(dict(reversed(columns.items()))), columns=here.columns)
    assert [c.name for c in there.table.columns] != here.columns
    here.execute(*inserts)
    there.execute(*reversed(inserts))
    assert here.buckets() == there.buckets()
    assert here.digests() == there.digests()
    assert here.rows() == there.rows()
    there.columns = here.columns[:1] + here.columns[:0:-1]
    assert here.buckets() != there.buckets(), "the order of the columns counts"


def test_what_the_database_takes_for_equal_is_told_apart(database_kind: str, new_place: MakePlace) -> None:
    alike = {f"c{number}": one for number, one in enumerate(ALIKE[database_kind])}
    place = new_place(database_kind, schema({name: (kind, []) for name, (kind, _, _) in alike.items()}))
    for name, (_, old, new) in alike.items():
        place.execute("DELETE FROM v", f"INSERT INTO v (id, {name}) VALUES (1, {old})")
        before = place.buckets()
        place.execute(f"UPDATE v SET {name} = {new}")
        assert len(changed(before, place.buckets())) == 1, name


PLAIN = "CREATE TABLE v (id BIGINT PRIMARY KEY, a VARCHAR(40), b VARCHAR(40), c VARCHAR(40))"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({1: ("x", "y", "z")}, {1: ("y", "x", "z")}),
        ({1: ("x", None, "z")}, {1: (None, "x", "z")}),
        ({1: ("x", "", "")}, {1: ("", "x", "")}),
        ({1: ("", None, "")}, {1: (None, "", "")}),
        ({1: (None, "x", "z")}, {1: ("", "x", "z")}),
        ({1: ("NULL", "x", "z")}, {1: (None, "x", "z")}),
        ({1: ("null", "x", "z")}, {1: (None, "x", "z")}),
        ({1: ("x,y", "z", "")}, {1: ("x", "y,z", "")}),
        ({1: ("x','y", "z", "")}, {1: ("x", "y','z", "")}),
        ({1: ("x\\", "y", "")}, {1: ("x", "\\y", "")}),
        ({1: ("xy", "z", "")}, {1: ("x", "yz", "")}),
        ({1: ("x", "y", "z")}, {1: ("X", "y", "z")}),
        ({1: ("x", "y", "z")}, {1: ("x ", "y", "z")}),
        ({1: ("x", "y", "z"), 2: ("x", "y", "z")}, {1: ("w", "y", "z"), 2: ("w", "y", "z")}),
        ({1: ("x", "y", "z"), 2: (None, "y", "z")}, {1: (None, "y", "z"), 2: ("x", "y", "z")}),
        ({1: ("x", "y", "z"), 2: ("u", "v", "w")}, {1: ("u", "v", "w"), 2: ("x", "y", "z")}),
        ({1: ("x", "y", "z"), 2: ("x", "y", "z")}, {1: ("x", "y", "z"), 3: ("x", "y", "z")}),
        ({1: ("x", "y", "z")}, {1: ("x", "y", "z"), 2: ("x", "y", "z")}),
    ],
)
def test_a_bucket_tells_rows_apart(
    database_kind: str, new_place: MakePlace, before: dict[int, Any], after: dict[int, Any]
) -> None:
    """All in one bucket; what is swapped, shifted or moved, or changes in the same way in two rows, does not cancel out."""
    place = new_place(database_kind, PLAIN)
    found = []
    for rows in (before, after):
        place.execute("DELETE FROM v")
        values = [{"i": number, "a": a, "b": b, "c": c} for number, (a, b, c) in rows.items()]
        place.execute("INSERT INTO v VALUES (:i, :a, :b, :c)", values=values)
        found.append(place.buckets(1))
    assert found[0].keys() == found[1].keys() == {0}
    assert found[0][0].digest != found[1][0].digest


@pytest.mark.parametrize(
    ("one", "other"),
    [(-1, 4294967295), (1, 4294967296), (0, -4294967296), (0, 4294967297), (-4294967297, 0), (5, 21474836480)],
)
def test_large_integers_are_told_apart_in_all_their_bits(
    database_kind: str, new_place: MakePlace, one: int, other: int
) -> None:
    """PostgreSQL's own hash of a bigint folds it, so that small ones have the hashes of the smaller types."""
    place = new_place(database_kind, "CREATE TABLE v (id BIGINT PRIMARY KEY, n BIGINT)")
    found = []
    for value in (one, other):
        place.execute("DELETE FROM v", f"INSERT INTO v VALUES (7, {value})")
        found.append(place.buckets(1)[0].digest)
    place.execute("DELETE FROM v", f"INSERT INTO v VALUES ({one}, 9)")
    found.append(place.buckets(1)[0].digest)
    place.execute(f"UPDATE v SET id = {other}")
    found.append(place.buckets(1)[0].digest)
    assert len(set(found)) == 4


def test_many_rows_changed_alike_do_not_cancel_out(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, PLAIN)
    place.execute("INSERT INTO v VALUES (:i, 'a', 'b', 'c')", values=[{"i": number} for number in range(256)])
    before, seen = place.buckets(), {one.digest for one in place.buckets(1).values()}
    for value in ("'d'", "NULL", "''", "'A'", "'a '"):
        place.execute(f"UPDATE v SET a = {value}")
        after = place.buckets()
        assert changed(before, after) == set(before)
        assert {place: one.rows for place, one in before.items()} == {place: one.rows for place, one in after.items()}
        seen |= {one.digest for one in place.buckets(1).values()}
    assert len(seen) == 6


def test_some_buckets_are_told_as_they_are_among_all(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(
        database_kind,
        "CREATE TABLE v (id INTEGER PRIMARY KEY, a VARCHAR(9))",
        "INSERT INTO v VALUES " + ", ".join(f"({i}, 'x{i}')" for i in range(50)),
    )
    every = place.buckets(10)
    assert len(every) == 10
    for wanted in ([3], [9, 0, 4], []):
        assert place.read("buckets", place.columns, 10, wanted) == {one: every[one] for one in wanted}
    assert place.read("buckets", place.columns, 100, range(100)) == place.buckets(100)


def test_digests_of_rows_add_up_to_those_of_buckets(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, PLAIN)
    place.execute("INSERT INTO v VALUES (:i, 'a', NULL, :c)", values=[{"i": i, "c": f"c{i % 7}"} for i in range(12_000)])
    buckets = place.buckets(20)
    assert sum(one.rows for one in buckets.values()) == place.read("count") == 12_000
    assert all(400 < one.rows < 800 for one in buckets.values()), "the hash spreads keys"
    halves = [one.digest[at : at + 8] for one in buckets.values() for at in range(0, len(one.digest), 8)]
    assert len(set(halves)) == len(halves), "each half of a digest tells something else"
    seen: set[str] = set()
    for home, bucket in buckets.items():
        digests = place.digests([home], 20)
        assert len(digests) == bucket.rows
        assert reduce(xor, (int.from_bytes(one, "big") for one in digests.values())) == int.from_bytes(bucket.digest, "big")
        assert seen.isdisjoint(digests)
        seen |= digests.keys()
    assert seen == {key(place, number) for number in range(12_000)}
    portions = place.read("row_digests", place.columns, 20, range(20))
    assert len(portions) == 3
    assert {one for some in portions for one, _ in some} == seen
    assert place.digests([], 20) == {}
    assert place.digests([99], 20) == {}


def test_rows_outside_the_filter_and_excluded_columns_never_take_part(database_kind: str, new_place: MakePlace) -> None:
    """TRAPS 32; NULL means outside, and percent signs are nobody's."""
    create = (
        "CREATE TABLE v (id BIGINT PRIMARY KEY, a VARCHAR(40), b VARCHAR(40), g INT GENERATED ALWAYS AS (length(a)) STORED)"
    )
    where = "a LIKE 'in%' OR a = '%s'"
    place = new_place(database_kind, create, where=where, exclude=["b"])
    assert place.columns == ["id", "a"]
    inserts = [(1, "in"), (2, "out"), (3, None), (4, "in%d"), (5, "%s")]
    place.execute("INSERT INTO v (id, a, b) VALUES (:i, :a, 'b')", values=[{"i": i, "a": a} for i, a in inserts])
    before = place.buckets()
    expected = {key(place, number) for number in (1, 4, 5)}
    assert place.read("count") == sum(one.rows for one in before.values()) == 3
    assert place.digests().keys() == expected
    assert [json.loads(row)[1] for row in place.rows()] == ["in", "in%d", "%s"]
    assert place.rows_of([key(place, number) for number in range(1, 9)]) == place.rows()
    place.execute("UPDATE v SET b = 'other'", "UPDATE v SET a = 'still out' WHERE id IN (2, 3)")
    assert place.buckets() == before
    named = replace_columns(place, ["id", "a", "b", "g"])
    assert named.buckets() == before
    assert named.rows() == place.rows()
    with pytest.raises(NotApplicable, match="no column z"):
        replace_columns(place, ["id", "z"]).buckets()
    with pytest.raises(NotApplicable, match="primary key"):
        replace_columns(place, ["a", "id"]).buckets()


def replace_columns(place: Place, columns: list[str]) -> Place:
    return replace(place, columns=columns)


ODD = [
    "",
    "a",
    "A",
    "a ",
    "'",
    '"',
    "\\",
    "a,b",
    '","',
    "%s",
    "%",
    "é",
    "😀",
    "\n",
    "\t",
    "null",
    "[",
    "]",
    "/",
    "\x01",
    "{}",
]


def test_keys_of_any_look(database_kind: str, new_place: MakePlace) -> None:
    """Composite, of texts and bytes, with quotes, backslashes, commas, percent signs; names that need quoting."""
    odd, first, second, value = (q(database_kind, name) for name in ("odd na%me's", "sel%ect", "x y", "Order"))
    exact = " CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin" if database_kind == "mariadb" else ""
    place = new_place(
        database_kind,
        f"CREATE TABLE {odd} ({value} VARCHAR(20), {second} {BYTES[database_kind]} NOT NULL, {first} VARCHAR(20){exact} NOT NULL,"
        f" PRIMARY KEY ({first}, {second}))",
        name="odd na%me's",
    )
    values = [{"a": one, "b": one.encode() + tail, "v": one} for one in ODD for tail in (b"", b"\0", b"'\\\xff")]
    statement = f"INSERT INTO {odd} ({first}, {second}, {value}) VALUES (:a, :b, :v)"
    place.execute(statement, values=values)
    digests, rows = place.digests(), place.rows()
    assert place.read("count") == len(digests) == len(rows) == len(values)
    assert sorted(json.loads(row)[0] for row in rows) == sorted(str(one["a"]) for one in values)
    assert place.rows_of(list(digests)) == place.rows_of(list(digests), 1)
    for one in (rows, place.rows(1)):
        frame = Frame(place.table.name, Kind.INSERT, tuple(place.columns), len(one), SEPARATOR.join(one))
        assert [",".join(found) for found in keys_of(frame, 2)] == [plain(found) for found in ordered(place, one)]
    for spelled in digests:
        (row,) = place.rows_of([spelled])
        assert json.loads(row)[:2] == json.loads(f"[{spelled}]")


def ordered(place: Place, rows: Sequence[str]) -> list[str]:
    """The keys of `row_digests` in the order of these rows."""
    width = len(place.table.key)
    known = {json.dumps(json.loads(f"[{one}]")): one for one in place.digests()}
    return [known[json.dumps(json.loads(row)[:width])] for row in rows]


def plain(spelled: str) -> str:
    """As `keys_of` spells it."""
    frame = Frame("t", Kind.DELETE, (), 1, f"[{spelled}]")
    found = keys_of(frame, len(json.loads(f"[{spelled}]")))[0]
    return ",".join([found] if isinstance(found, str) else found)


def test_case_insensitive_keys(database_kind: str, new_place: MakePlace) -> None:
    """A key is found in its own spelling only, and each row once."""
    made = [COLLATION] if database_kind == "postgresql" else []
    place = new_place(database_kind, *made, f"CREATE TABLE v (k {FOLDED[database_kind]} PRIMARY KEY, n INT)")
    place.execute("INSERT INTO v VALUES ('Ab', 1), ('b', 2), ('É', 3)")
    before = place.buckets()
    assert place.digests().keys() == {'"Ab"', '"b"', '"É"'}
    assert len(place.rows_of(['"Ab"', '"ab"', '"AB"', '"Ab"', '"B"', '"b"', '"none"'])) == 2
    place.execute("UPDATE v SET k = 'aB' WHERE n = 1")
    assert changed(before, place.buckets())
    assert place.rows_of(['"Ab"']) == []
    assert len(place.rows_of(['"aB"'])) == 1


MARIADB_KEYS = {
    "bigint unsigned": "18446744073709550000 + seq", "decimal(30,10)": "seq * 0.0000000001 - 12345678901234567890",
    "double": "seq / 7 - 99", "float": "seq / 7 - 99", "bit(40)": "seq * 1000", "date": "'1999-12-31' + interval seq day",
    "datetime(6)": "'1999-12-31 23:00:00' + interval seq * 1.000001 second", "timestamp(3) default now(3)": "from_unixtime(seq * 1.5)",
    "time(3)": "sec_to_time(seq * 1.25 - 900)", "year": "if(seq = 1, 0, 1900 + seq)", "char(10)": "concat(char(97 + seq % 26), seq)",
    "varchar(20) character set latin1": "concat(char(233 using latin1), seq)", "varbinary(20)": "unhex(lpad(hex(seq * 77), 8, '0'))",
    "uuid": "concat(lpad(hex(seq * 999999), 8, '0'), '-0000-1000-8000-', lpad(hex(9999 - seq), 12, '0'))",
    "inet6": "concat('2001:db8::', hex(seq))", "enum('b','a','x y','q''')": "1 + seq % 4",
    "set('b','a','c')": "seq % 8",
    "text": "concat(repeat('é', 10), seq)", "blob": "concat(unhex('00ff'), seq)",
}  # fmt: skip


@pytest.mark.parametrize("type_", MARIADB_KEYS)
def test_pages_of_mariadb_follow_each_other_whatever_the_key(
    new_place: MakePlace, type_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row once, in the order of the key."""
    monkeypatch.setattr("common.dialects.mariadb_snapshot.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("common.dialects.mariadb_snapshot.DIGESTS_AT_ONCE", 6)
    prefix = "(20)" if type_ in {"text", "blob"} else ""
    create = f"CREATE TABLE v (k {type_} NOT NULL, m INT NOT NULL, PRIMARY KEY (k{prefix}, m))"
    place = new_place("mariadb", create)
    expression = MARIADB_KEYS[type_]
    place.execute(f"INSERT INTO v SELECT {expression.replace(':', chr(92) + ':')}, 121 - seq FROM seq_1_to_120")
    expected = set(range(1, 121))
    rows = [int(json.loads(row)[1]) for row in place.rows()]
    assert len(rows) == 120
    assert set(rows) == expected
    if not type_.startswith(("enum", "set")):
        with place.database.connect() as connection:
            assert rows == list(connection.exec_driver_sql("SELECT m FROM v ORDER BY k, m").scalars())
    digests = place.digests()
    assert len(digests) == 120
    assert {int(json.loads(row)[1]) for row in place.rows_of(list(digests))} == expected


def test_an_empty_table_and_a_single_row(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, "CREATE TABLE v (id BIGINT PRIMARY KEY)")
    assert (place.read("count"), place.buckets(), place.digests(), place.rows()) == (0, {}, {}, [])
    assert place.rows_of([]) == place.rows_of([key(place, 1)]) == []
    place.execute("INSERT INTO v VALUES (1)")
    (found,) = place.buckets().values()
    assert (found.rows, place.read("count")) == (1, 1)
    assert place.digests() == {key(place, 1): found.digest}
    assert place.rows() == place.rows_of([key(place, 1)]) == [f"[{key(place, 1)}]"]


def test_rows_are_what_the_triggers_capture(database_kind: str, new_pipeline: MakePipeline) -> None:
    """TRAPS 30: the same text, and so the same frames."""
    columns = VALUES[database_kind]
    values = [(name, one.replace(":", r"\:")) for name, (_, found) in columns.items() for one in found]
    pipeline = new_pipeline(database_kind, *TYPES.get(database_kind, ()), schema(columns), tables='v where="id <> 3"\n')
    node = pipeline.primary
    node.execute(
        *(["SET sql_mode = 'ALLOW_INVALID_DATES'"] if database_kind == "mariadb" else []),
        *[f"INSERT INTO v (id, {name}) VALUES ({number}, {one})" for number, (name, one) in enumerate(values)],
        *(["SET sql_mode = DEFAULT"] if database_kind == "mariadb" else []),
    )
    captured = [
        row for (rows,) in node.rows("SELECT rows_json FROM stsync_outbox ORDER BY id") for row in rows.split(SEPARATOR)
    ]
    assert len(captured) == len(values) - 1
    with node.database.connect() as connection:
        table = listed_tables(node.database, connection, node.settings)["v"]
    place = Place(node.database, table, [column.name for column in table.columns])
    assert place.rows() == place.rows(1) == captured
    keys = [key(place, number) for number in range(len(values)) if number != 3]
    assert place.rows_of(keys) == place.rows_of(keys, 1) == captured
    assert place.rows_of(keys[::-2]) == captured[::-2]
    assert len(place.read("rows", place.columns, 1)) == len(captured)


def test_a_value_of_ten_megabytes(database_kind: str, new_place: MakePlace) -> None:
    """Among small ones; its last character counts."""
    place = new_place(
        database_kind, f"CREATE TABLE v (id BIGINT PRIMARY KEY, a {LONG[database_kind]}, b {LONG[database_kind]})"
    )
    wide = "é'\\x" * (2 << 20)
    values = [{"i": 1, "a": "s"}, {"i": 2, "a": wide}, {"i": 3, "a": wide[:-1] + "y"}, {"i": 4, "a": "s"}]
    place.execute("INSERT INTO v VALUES (:i, :a, '')", values=values)
    before = place.buckets()
    rows = place.rows()
    assert [json.loads(row)[1] for row in rows] == [one["a"] for one in values]
    assert place.rows_of(list(place.digests())) == [rows[int(one.strip('"')) - 1] for one in place.digests()]
    assert [number for number, _ in place.read("rows", place.columns, 1 << 20)] == [2, 1, 1]
    place.execute("UPDATE v SET a = :a WHERE id = 2", values=[{"a": wide[:-1] + "y"}])
    assert changed(before, place.buckets()) == {place.bucket_of(key(place, 2))}


def test_a_generator_may_be_closed_early(database_kind: str, new_place: MakePlace) -> None:
    """And between its portions the connection is free; on connections that read and on those that write."""
    place = new_place(database_kind, PLAIN)
    place.execute("INSERT INTO v VALUES (:i, 'a', 'b', 'c')", values=[{"i": i} for i in range(12_000)])
    dialect, keys = place.database.dialect, [key(place, i) for i in range(3_000)]
    for read_only in (True, False):
        with place.database.connect(read_only=read_only) as connection:
            for begun in (
                dialect.rows(connection, place.table, place.columns, 1000),
                dialect.rows_of(connection, place.table, place.columns, keys, 1000),
                dialect.row_digests(connection, place.table, place.columns, 4, range(4)),
            ):
                first = next(begun)
                assert connection.exec_driver_sql("SELECT a FROM v WHERE id = 7").scalar_one() == "a"
                assert next(begun) != first
                begun.close()
                assert dialect.count(connection, place.table) == 12_000
            connection.rollback()
            if not read_only:
                connection.exec_driver_sql("DELETE FROM v WHERE id < 10")
                assert dialect.count(connection, place.table) == 11_990
                assert sum(one.rows for one in dialect.buckets(connection, place.table, place.columns, 4).values()) == 11_990
                connection.commit()
    place.execute("DROP TABLE v")  # which whatever was left open would keep from going


def test_all_is_read_of_one_snapshot(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, PLAIN)
    place.execute("INSERT INTO v VALUES (:i, 'a', 'b', 'c')", values=[{"i": i} for i in range(3_000)])
    if database_kind == "sqlite":
        place.execute("COMMIT", "PRAGMA journal_mode = WAL", "BEGIN")
    dialect = place.database.dialect
    with place.database.connect(read_only=True) as connection:
        assert dialect.count(connection, place.table) == 3_000
        portions = dialect.rows(connection, place.table, place.columns, 1000)
        seen = next(portions)[0]
        place.execute("DELETE FROM v WHERE id > 10", "INSERT INTO v VALUES (9999, 'new', '', '')")
        assert seen + sum(number for number, _ in portions) == 3_000
        assert sum(one.rows for one in dialect.buckets(connection, place.table, place.columns, 4).values()) == 3_000
    assert place.read("count") == 12


def test_a_large_table_is_never_in_memory_whole(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, PLAIN)
    place.execute("INSERT INTO v VALUES (:i, :a, 'b', 'c')", values=[{"i": i, "a": f"{i:040}"} for i in range(100_000)])
    dialect, most = place.database.dialect, 0
    with (
        place.database.connect(read_only=True) as connection,
        closing(dialect.rows(connection, place.table, place.columns, 64 << 10)) as portions,
    ):
        tracemalloc.start()
        count = 0
        for number, rows in portions:
            count += number
            most = max(most, len(rows))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 100_000
    assert most < (64 << 10) + 200
    assert peak < 3 << 20


def test_long_rows_are_never_in_memory_together(database_kind: str, new_place: MakePlace) -> None:
    place = new_place(database_kind, f"CREATE TABLE v (id BIGINT PRIMARY KEY, a {LONG[database_kind]})")
    for number in range(0, 150, 10):
        values = [{"i": number + i, "a": "s" if i % 3 == 0 else "w" * 300_000} for i in range(10)]
        place.execute("INSERT INTO v VALUES (:i, :a)", values=values)
    dialect, keys, peaks = place.database.dialect, list(place.digests()), []
    with place.database.connect(read_only=True) as connection:
        every = dialect.rows(connection, place.table, place.columns, 64 << 10)
        named = dialect.rows_of(connection, place.table, place.columns, keys, 64 << 10)
        for portions in (every, named):
            tracemalloc.start()
            assert sum(number for number, _ in portions) == 150
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 8 << 20


@pytest.fixture
def packet(mariadb: PrivateMariaDB) -> Iterator[Callable[[int], None]]:
    """Sets MariaDB's max_allowed_packet for sessions that begin afterwards."""
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)

    def allow(size: int) -> None:
        with administrator.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {size}")

    with administrator.connect() as connection:
        before = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar_one()
    yield allow
    allow(before)


@pytest.mark.parametrize("kind", ["LONGTEXT", "LONGTEXT CHARACTER SET latin1", "LONGBLOB"])
def test_values_longer_than_the_servers_packet_count_and_are_told(
    new_place: MakePlace, packet: Callable[[int], None], kind: str
) -> None:
    """What is longer is NULL to MariaDB's functions, which must not make two rows equal."""
    place = new_place("mariadb", f"CREATE TABLE v (id BIGINT PRIMARY KEY, a {kind}, b VARCHAR(9))")
    place.execute("INSERT INTO v VALUES (1, CONCAT(REPEAT('x', 3000000), 'y'), 'b'), (2, 'a', 'b')")
    packet(1 << 20)
    before = place.buckets(1)
    packet(64 << 20)
    assert place.buckets(1) == before
    place.execute("UPDATE v SET a = CONCAT(REPEAT('x', 3000000), 'z') WHERE id = 1")
    assert len(place.rows()) == 2
    packet(1 << 20)
    assert place.buckets(1) != before
    with pytest.raises(Unavailable, match="a row of table v is longer"):
        place.rows()
    with pytest.raises(Unavailable, match="a row of table v is longer"):
        place.rows_of(['"1"'])
    packet(64 << 10)
    for how, more in (("buckets", [1]), ("row_digests", [1, [0]]), ("rows", [1]), ("rows_of", [['"2"'], 1])):
        with pytest.raises(Unavailable, match="max_allowed_packet is 65536"):
            place.read(how, place.columns, *more)


def test_rows_are_found_by_the_index_of_the_primary_key(new_place: MakePlace) -> None:
    """Of a table of many rows not many are looked at for few keys."""
    for kind in ("postgresql", "mariadb"):
        place = new_place(kind, PLAIN)
        place.execute("INSERT INTO v VALUES (:i, 'a', 'b', 'c')", values=[{"i": i} for i in range(30_000)])
        place.execute("ANALYZE v" if kind == "postgresql" else "ANALYZE TABLE v")
        keys = [key(place, number) for number in range(0, 30_000, 60)]
        with place.database.connect() as connection:
            before = looked_at(kind, connection)
            assert (
                len(split(list(place.database.dialect.rows_of(connection, place.table, place.columns, keys, 1 << 20))))
                == 500
            )
            assert looked_at(kind, connection) - before < 5_000, kind


def looked_at(kind: str, connection: Connection) -> int:
    if kind == "postgresql":
        asked = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'v'"
        return int(connection.exec_driver_sql(asked).scalar_one())
    return int(connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read_rnd_next'").one()[1])


def test_text_of_sqlite_that_is_none(new_place: MakePlace) -> None:
    """TRAPS 30: any bytes; nothing fails over them, and they count."""
    place = new_place("sqlite", "CREATE TABLE v (k TEXT PRIMARY KEY, a TEXT)")
    place.execute("INSERT INTO v VALUES ('one', CAST(X'41FF' AS TEXT)), (CAST(X'FE' AS TEXT), 'b'), (NULL, 'no key')")
    for writing in (False, True):
        buckets = place.read("buckets", place.columns, NUMBER, writing=writing)
        assert sum(one.rows for one in buckets.values()) == place.read("count", writing=writing) == 2
        ((portion),) = place.read("row_digests", place.columns, NUMBER, range(NUMBER), writing=writing)
        assert {one for one, _ in portion} == {'"one"', '"\udcfe"'}
        ((number, rows),) = place.read("rows", place.columns, 1000, writing=writing)
        assert (number, rows.count("\udcff"), rows.count("\udcfe")) == (2, 1, 1)
        assert place.read("rows_of", place.columns, ['"one"'], 1000, writing=writing) == [(1, '["one","A\udcff"]')]
        with pytest.raises(NotApplicable):
            place.read("rows_of", place.columns, ['"\udcfe"'], 1000, writing=writing)
    before = place.buckets()
    place.execute("UPDATE v SET a = CAST(X'41FE' AS TEXT) WHERE k = 'one'")
    assert len(changed(before, place.buckets())) == 1


def test_text_of_mariadb_that_is_none(new_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 30: halves of surrogate pairs are characters to it; nothing fails over them, and they count."""
    monkeypatch.setattr("common.dialects.mariadb_snapshot.ROWS_AT_ONCE", 1)
    kind = "VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
    place = new_place("mariadb", f"CREATE TABLE v (k {kind} PRIMARY KEY, a {kind})")
    half = "CONVERT(UNHEX('{}') USING utf8mb4)".format
    place.execute(f"INSERT INTO v VALUES ('one', {half('EDA080')}), ({half('EDB080')}, 'b')")
    before = place.buckets()
    assert place.digests().keys() == {'"one"', '"\udced\udcb0\udc80"'}
    assert place.rows() == place.rows(1) == ['["one", "\udced\udca0\udc80"]', '["\udced\udcb0\udc80", "b"]']
    assert place.rows_of(list(place.digests())) == place.rows()
    place.execute(f"UPDATE v SET a = {half('EDA081')} WHERE k = 'one'")
    assert len(changed(before, place.buckets())) == 1
