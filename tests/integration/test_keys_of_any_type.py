"""A row is found by its key, whatever the key's type, value and neighbours (TRAPS 30)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

Keys = dict[str, tuple[str, list[tuple[str, str]]]]

# Of each type, the keys that rows begin with and those that they get later, in this order: where one goes another may come.
POSTGRESQL: Keys = {
    "numeric_": (
        "numeric",
        [
            ("1.0", "1.00"),
            ("'NaN'", "'-Infinity'"),
            ("'Infinity'", "'NaN'"),
            ("123456789012345678901234567890.123456789", "0.1000000000000000000000000000001"),
        ],
    ),
    "timestamptz_": (
        "timestamptz",
        [
            ("'infinity'", "'-infinity'"),
            ("'0044-03-15 12:00:00+00 BC'", "'294276-12-31 23:59:59+00'"),
            ("'2024-03-31 02:30:00.123456+02'", "'infinity'"),
        ],
    ),
    "timestamp_": (
        "timestamp",
        [
            ("'-infinity'", "'4713-01-01 00:00:00 BC'"),
            ("'2024-02-29 12:34:56.789012'", "'-infinity'"),
            ("'294276-12-31 23:59:59.999999'", "'2024-02-29 12:34:56.789012'"),
        ],
    ),
    "date_": (
        "date",
        [("'infinity'", "'4713-01-01 BC'"), ("'2024-02-29'", "'infinity'"), ("'5874897-12-31'", "'-infinity'")],
    ),
    "time_": (
        "time",
        [("'24:00:00'", "'12:34:56.000001'"), ("'00:00:00'", "'24:00:00'"), ("'23:59:59.999999'", "'00:00:00'")],
    ),
    "timetz_": (
        "timetz",
        [
            ("'24:00:00-15:59'", "'01:02:03.000004+05:45'"),
            ("'12:00:00+00'", "'13:00:00+01'"),
            ("'00:00:00+15:59'", "'0:00Z'"),
        ],
    ),
    "interval_": (
        "interval",
        [
            ("'1 day'", "'24:00:00'"),
            ("'1 year -2 months 3 days 04:05:06.789'", "'-1 month'"),
            ("'-00:00:00.000001'", "'178000000 years'"),
        ],
    ),
    "bytea_": ("bytea", [(r"'\x00ff00'", r"'\x00ff'"), ("''", r"'\x00ff00'"), (r"'\x5c27'", "''")]),
    "float8_": (
        "float8",
        [
            ("'NaN'", "'-Infinity'"),
            ("'1e-320'", "'NaN'"),
            ("'-0'", "'0'"),
            ("'0.1'", "'0.30000000000000004'"),
            ("'Infinity'", "'1.7976931348623157e308'"),
        ],
    ),
    "real_": (
        "real",
        [("'0.1'", "'16777217'"), ("'NaN'", "'1e-45'"), ("'3.4e38'", "'NaN'"), ("'0'", "'-0'"), ("'-Infinity'", "'0.1'")],
    ),
    "uuid_": (
        "uuid",
        [
            ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"),
            ("'ffffffff-ffff-ffff-ffff-ffffffffffff'", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
        ],
    ),
    "char_": ("char(5)", [("'ab'", "'AB'"), ("'a'", "'ab'"), ("''", "'a'")]),
    "one_char": ('"char"', [("'x'", "'X'"), ("''", "'x'")]),
    "mood_": ("mood", [("'it''s, \"fine\"'", "'sad'"), ("'ok'", "'it''s, \"fine\"'")]),
    "ints": (
        "int[]",
        [("'{1,2}'", "'{}'"), ("'[0:1]={7,8}'", "'{7,8}'"), ("'{{1,2},{3,4}}'", "'{1,2,3,4}'"), ("'{NULL}'", "'{1,2}'")],
    ),
    "texts": (
        "text[]",
        [("ARRAY['a,b', 'c\"d', NULL, '']", "'{}'"), ("ARRAY['null']", "'{NULL}'"), ("ARRAY[E'\\\\']", "ARRAY['']")],
    ),
    "numerics": ("numeric[]", [("'{1.0}'", "'{1.00}'"), ("'{NaN}'", "'{-Infinity}'")]),
    "inet_": ("inet", [("'192.0.2.1/24'", "'192.0.2.1'"), ("'::1'", "'192.0.2.1/24'"), ("'::ffff:192.0.2.1'", "'::1/128'")]),
    "bit_": ("bit(5)", [("B'10101'", "B'00000'"), ("B'11111'", "B'10101'")]),
    "varbit_": ("varbit", [("B'1'", "B'10'"), ("B''", "B'1'")]),
    "boolean_": ("boolean", [("true", "false")]),
    "jsonb_": (
        "jsonb",
        [
            ("'1.0'", "'1.00'"),
            ("'[1.10, null]'", '\'{"b": 1, "a": ""}\''),
            ("'null'", "'[1.10, null]'"),
            ("'\"text\"'", "'null'"),
        ],
    ),
    "posint_": ("posint", [("1", "2147483647"), ("7", "1")]),
    "pair_": ("pair", [("ROW(1, 'x,\"y')::pair", "ROW(1, 'X')::pair"), ("ROW(NULL, '')::pair", "ROW(NULL, NULL)::pair")]),
    "range_": ("numrange", [("'[1.0,2)'", "'[1.00,2)'"), ("'empty'", "'(,)'")]),
    "text_": ("text", [("'a '", "'a'"), ("''", "'A'"), (r"E'line\nfeed\ttab \\ \x01'", "'😀'"), ("'null'", "''")]),
}
MARIADB: Keys = {
    "date_": (
        "date",
        [("'0000-00-00'", "'2024-02-30'"), ("'2024-00-00'", "'0000-00-00'"), ("'2024-02-29'", "'9999-12-31'")],
    ),
    "datetime_": (
        "datetime(6)",
        [
            ("'0000-00-00 00:00:00'", "'2024-03-31 02:30:00.123456'"),
            ("'2024-00-00 00:00:00.000001'", "'0000-00-00 00:00:00'"),
            ("'9999-12-31 23:59:59.999999'", "'1000-01-01 00:00:00'"),
        ],
    ),
    "timestamp_": (
        "timestamp(3)",
        [
            ("'2024-10-27 02:30:00.5'", "'2024-10-27 02:30:00.501'"),
            ("'0000-00-00 00:00:00'", "'1970-01-01 12:00:01'"),
            ("'2038-01-19 08:59:07.999'", "'0000-00-00 00:00:00'"),
        ],
    ),
    "time_": (
        "time(2)",
        [("'24:00:00.25'", "'-00:00:00.01'"), ("'-838:59:59'", "'24:00:00.25'"), ("'00:00:00'", "'838:59:59.99'")],
    ),
    "year_": ("year", [("1999", "2155"), ("0", "1999"), ("2000", "0")]),
    "bit_": (
        "bit(12)",
        [("b'101010101010'", "b'000000000000'"), ("b'111111111111'", "b'101010101010'"), ("b'1'", "b'111111111111'")],
    ),
    "bit64": ("bit(64)", [("18446744073709551615", "9223372036854775808"), ("0", "18446744073709551615")]),
    "binary_": (
        "binary(4)",
        [("X'41000000'", "X'41000020'"), ("X'20202020'", "X'00000000'"), ("X'FFFE275C'", "X'20202020'")],
    ),
    "varbinary_": ("varbinary(20)", [("X'00FF00'", "X'00FF0000'"), ("''", "X'00FF00'"), ("X'20'", "''"), ("'a'", "'A'")]),
    "enum_": ("enum('a','it''s','x,y')", [("'it''s'", "'x,y'"), ("'a'", "'it''s'")]),
    "enum_of_digits": ("enum('3','1','2')", [("'1'", "'2'"), ("'3'", "'1'")]),
    "set_": ("set('a','b','c')", [("'a,c'", "'a,b,c'"), ("''", "'a,c'"), ("'b'", "''")]),
    "float_": (
        "float",
        [
            ("CAST(0.1 AS FLOAT)", "CAST(16777217 AS FLOAT)"),
            ("CAST(3.4e38 AS FLOAT)", "CAST(0.1 AS FLOAT)"),
            ("CAST(0 AS FLOAT)", "CAST(-1e-45 AS FLOAT)"),
        ],
    ),
    "double_": (
        "double",
        [
            ("0.1e0", "1e-300"),
            ("1.7976931348623157e308", "0.30000000000000004e0"),
            ("2.2250738585072014e-308", "0.1e0"),
            ("0.0e0", "-4.9406564584124654e-324"),
        ],
    ),
    "decimal_": (
        "decimal(30,10)",
        [
            ("0.1", "-0.0000000001"),
            ("12345678901234567890.1234567891", "-99999999999999999999.9999999999"),
            ("1", "12345678901234567890.1234567891"),
        ],
    ),
    "uuid_": (
        "uuid",
        [
            ("'123e4567-e89b-12d3-a456-426655440000'", "'00000000-0000-0000-0000-000000000000'"),
            ("'ffffffff-ffff-ffff-ffff-ffffffffffff'", "'123E4567-E89B-12D3-A456-426655440000'"),
        ],
    ),
    "inet6_": (
        "inet6",
        [("'::1'", "'2001:db8::ff00:42:8329'"), ("'::'", "'::1'"), ("'::ffff:192.0.2.1'", "'::'")],
    ),
    "inet4_": ("inet4", [("'192.0.2.1'", "'0.0.0.0'"), ("'255.255.255.255'", "'192.0.2.1'")]),
    "unsigned_": (
        "bigint unsigned",
        [
            ("18446744073709551615", "9223372036854775808"),
            ("0", "18446744073709551615"),
            ("9223372036854775807", "9223372036854775806"),
        ],
    ),
    "zerofilled": ("int(8) unsigned zerofill", [("42", "4294967295"), ("0", "42")]),
    "folded": ("varchar(20)", [("'a '", "'A'"), ("'null'", "'MiXed  '"), ("''", "'null'"), ("'é'", "'E'"), (r"'\\'", "''")]),
    "latin1_": ("varchar(20) CHARACTER SET latin1", [("'café'", "'CAFÉ '"), ("'ß'", "'s'")]),
    "char_": ("char(6)", [("'ab'", "'AB'"), ("''", "'zz'"), ("'É'", "''")]),
    "to_the_byte": ("varchar(20) COLLATE utf8mb4_bin", [("'a'", "'A'"), ("'b '", "'b'"), ("'😀'", "'a'")]),
    "no_pad": ("varchar(20) COLLATE utf8mb4_nopad_bin", [("'a'", "'A'"), ("'a '", "'a'"), ("''", "' '")]),
}
KEYS = {"postgresql": POSTGRESQL, "mariadb": MARIADB}
TYPES = {
    "postgresql": [
        "CREATE TYPE mood AS ENUM ('ok', 'it''s, \"fine\"', 'sad')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)",
    ],
    "mariadb": [],
}
SESSION = {
    "postgresql": ["SET timezone = 'Asia/Kathmandu'", "SET datestyle = 'SQL, DMY'", "SET extra_float_digits = -15"],
    "mariadb": ["SET time_zone = '+05:45', sql_mode = 'ALLOW_INVALID_DATES'"],
}
STEPS = {
    "insert": "INSERT INTO k_{name} VALUES ({old}, {number})",
    "update by the key": "UPDATE k_{name} SET v = v + 100 WHERE k = {old}",
    "change of the key": "UPDATE k_{name} SET k = {new} WHERE k = {old}",
    "update by the new key": "UPDATE k_{name} SET v = v + 100 WHERE k = {new}",
    "delete of every second": "DELETE FROM k_{name} WHERE k = {new}",
}
SHOWN_BY_MARIADB = {"timestamp": "UNIX_TIMESTAMP(k)", "float": "CAST(k AS DOUBLE)", "bit": "k + 0"}


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Pipeline]:
    """A primary and a secondary in this process, with a table for each type."""
    keys = KEYS[database_kind]
    tables = [f"CREATE TABLE k_{name} (k {kind} PRIMARY KEY, v INT)" for name, (kind, _) in keys.items()]
    listed = "".join(f"k_{name}\n" for name in keys)
    cluster = make_cluster(
        tmp_path / "c",
        database_kind,
        NO_BROKER,
        new_database,
        schema=[*TYPES[database_kind], *tables],
        tables=listed,
        nodes=("st1", "st2"),
    )
    made = Pipeline(cluster)
    yield made
    made.close()


@pytest.fixture
def writer(pipeline: Pipeline, database_kind: str) -> Iterator[Connection]:
    """Another program, whose session reads and shows values in its own way; each statement is a transaction."""
    engine = pipeline.primary.bare_engine()
    with engine.connect() as connection:
        for setting in SESSION[database_kind]:
            connection.exec_driver_sql(setting)
        yield connection
    engine.dispose()


@pytest.mark.parametrize("alone", [False, True], ids=["many changes together", "each change alone"])
@pytest.mark.parametrize("database_kind", KEYS)
def test_a_row_is_found_by_its_key(pipeline: Pipeline, writer: Connection, database_kind: str, alone: bool) -> None:
    keys, wrong = KEYS[database_kind], []
    for step, statement in STEPS.items():
        for name, (_, pairs) in keys.items():
            for number, (old, new) in enumerate(pairs, 1):
                if step == "delete of every second" and number % 2:
                    continue
                written = writer.exec_driver_sql(statement.format(name=name, old=old, new=new, number=number))
                assert written.rowcount == 1, (step, name, old, new)
                if alone:
                    pipeline.move()
        pipeline.move()
        wrong += [f"{step}: {one}" for one in [*pipeline.wrong(), *differing(pipeline, database_kind)]]
    assert wrong == []


def differing(pipeline: Pipeline, database_kind: str) -> list[str]:
    """The tables whose rows are not the same on both nodes, by the engine's own text in a session that is not ours."""
    found = []
    for name, (kind, _) in KEYS[database_kind].items():
        query = f"SELECT v, {shown(database_kind, kind)} FROM k_{name} ORDER BY v"
        expected, here = pipeline.primary.rows(query), pipeline.secondary.rows(query)
        if here != expected:
            found.append(f"k_{name} has {here} in place of {expected}")
    return found


def shown(database_kind: str, kind: str) -> str:
    """SQL that shows a key to the bit."""
    if database_kind == "postgresql":
        return "k::text"
    base, _, _ = kind.partition("(")
    return f"HEX(CONCAT({SHOWN_BY_MARIADB.get(base, 'k')}, ''))"
