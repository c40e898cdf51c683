"""Values arrive exactly as the engine stores them, whatever the writer's session says (TRAPS 30)."""

import random
from collections.abc import Callable

from sqlalchemy import text

from tests.harness import Cluster

MakeCluster = Callable[..., Cluster]

POSTGRESQL = {
    "n": ("numeric", ["0.1000000000000000000000000000001", "'NaN'", "123456789012345678901234567890.123456789"]),
    "d": ("double precision", ["0.1", "'Infinity'", "'-Infinity'", "'NaN'", "1e-320", "-0.0"]),
    "r": ("real", ["0.1", "3.4e38"]),
    "t": (
        "timestamptz",
        ["'2024-03-31 02:30:00.123456+02'", "'infinity'", "'0044-03-15 12:00:00+00 BC'", "'294276-12-31 23:59:59+00'"],
    ),
    "p": ("timestamp(3)", ["'2024-02-29 12:34:56.789'"]),
    "da": ("date", ["'infinity'", "'2024-02-29'", "'4713-01-01 BC'"]),
    "ti": ("time", ["'24:00:00'", "'12:34:56.000001'"]),
    "iv": ("interval", ["'1 year -2 months 3 days 04:05:06.789'"]),
    "b": ("bytea", [r"'\x00ff00'", "''"]),
    "j": ("json", ['\'{"b": 1,  "a": 18446744073709551616}\'', "'null'", "'\"text\"'"]),
    "jb": ("jsonb", ["'[1.10, null, \"x\"]'"]),
    "bi": ("bit(5)", ["B'10101'"]),
    "vb": ("varbit", ["B'1'"]),
    "ch": ("char(5)", ["'ab'"]),
    "vc": ("varchar(10)", ["''", "'  sp  '"]),
    "qc": ('"char"', ["'x'"]),
    "ar": ("text[]", ["ARRAY['a,b', 'c\"d', NULL, '']", "'{}'"]),
    "a2": ("int[][]", ["ARRAY[[1,2],[3,4]]"]),
    "rg": ("int4range", ["'[1,5)'", "'empty'"]),
    "mo": ("mood", ["'it''s, \"fine\"'"]),
    "co": ("pair", ["ROW(1, 'x,\"y')"]),
    "do_": ("posint", ["7"]),
    "u": ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    "ip": ("inet", ["'::1/128'"]),
    "m": ("money", ["12.34"]),
    "x": ("text", ["repeat('ü', 600000)", r"E'line\nfeed\ttab \\ \x01'"]),
}
MARIADB = {
    "bu": ("bigint unsigned", ["18446744073709551615", "9223372036854775808"]),
    "de": ("decimal(65,30)", ["12345678901234567890123456789012345.123456789012345678901234567891"]),
    "f": ("float", ["0.1", "3.4e38"]),
    "d": ("double", ["0.1", "1e-300", "1.7976931348623157e308"]),
    "bi": ("bit(12)", ["b'101010101010'"]),
    "y": ("year", ["1999"]),
    "da": ("date", ["'0000-00-00'", "'2024-02-30'", "'2024-00-00'"]),
    "dt": ("datetime(6)", ["'0000-00-00 00:00:00'", "'2024-03-31 02:30:00.123456'"]),
    "ts": ("timestamp(3) null", ["'2024-10-27 02:30:00.5'", "'1970-01-01 12:00:01'"]),
    "ti": ("time(2)", ["'-838:59:59'", "'24:00:00.25'"]),
    "e": ("enum('a','it''s','x,y')", ["'it''s'", "'x,y'"]),
    "se": ("set('a','b','c')", ["'a,c'", "''"]),
    "b": ("varbinary(20)", ["X'00FF00'", "''"]),
    "bl": ("longblob", ["X'0001'"]),
    "j": ("json", ['\'{"b": 1,  "a": 18446744073709551616}\'']),
    "l1": ("varchar(20) character set latin1", ["'café'"]),
    "ci": ("varchar(20)", ["'MiXed  '", "''"]),
    "x": ("longtext", ["repeat('ü', 600000)", r"'line\nfeed\ttab \\ 😀'"]),
    "g": ("point", ["ST_GeomFromText('POINT(1.5 -2)')"]),
    "i6": ("inet6", ["'::1'"]),
}
SQLITE = {
    "any_": ("", ["1", "'1'", "1.0", "X'31'", "9223372036854775807", "-9223372036854775808", "9e999", "-0.0"]),
    "i": ("INTEGER", ["'text in it'", "1.5", "42"]),
    "r": ("REAL", ["0.1", "1e-320", "3"]),
    "n": ("NUMERIC", ["'123456789012345678901234567890'", "0.1"]),
    "t": ("TEXT", ["''", "'12'", "'  sp  '", "'😀 \"q\" \\ ' || char(10) || char(9) || char(1)"]),
    "b": ("BLOB", ["X'00FF00'", "X''", "'text'"]),
    "no": ("TEXT COLLATE NOCASE", ["'MiXed'"]),
}


def check(cluster: Cluster, columns: dict[str, tuple[str, list[str]]], session: list[str]) -> None:
    """Each value alone in a row of NULLs: inserted, updated, and replaced by another; then compared."""
    cluster.start()
    with cluster.primary.engine.connect() as connection:
        for statement in session:
            connection.execute(text(statement))
        connection.commit()
        number = 0
        for name, (_, values) in columns.items():
            for value in values:
                number += 1
                literal = value.replace(":", r"\:")
                connection.execute(text(f"INSERT INTO v (id, {name}) VALUES ({number}, {literal})"))
                connection.execute(text(f"INSERT INTO v (id) VALUES ({number + 1000})"))
                connection.execute(text(f"UPDATE v SET {name} = {literal} WHERE id = {number + 1000}"))
        connection.commit()
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert node.command("quarantine", "list").returncode == 0
        assert node.rows("SELECT count(*) FROM v") == [(2 * number,)]


def schema(columns: dict[str, tuple[str, list[str]]]) -> str:
    return f"CREATE TABLE v (id BIGINT PRIMARY KEY, {', '.join(f'{name} {kind}' for name, (kind, _) in columns.items())})"


def test_values_of_postgresql(new_cluster: MakeCluster) -> None:
    types = (
        "CREATE TYPE mood AS ENUM ('ok', 'it''s, \"fine\"')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)",
    )
    cluster = new_cluster("postgresql", schema=[*types, schema(POSTGRESQL)], tables="v\n")
    check(cluster, POSTGRESQL, ["SET timezone = 'Asia/Kathmandu'", "SET datestyle = 'SQL, DMY'", "SET extra_float_digits = -15",
                                "SET bytea_output = 'escape'", "SET intervalstyle = 'sql_standard'"])  # fmt: skip


def test_values_of_mariadb(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("mariadb", schema=[schema(MARIADB)], tables="v\n")
    check(cluster, MARIADB, ["SET time_zone = '+05:45'", "SET sql_mode = 'ALLOW_INVALID_DATES,PIPES_AS_CONCAT'"])
    query = "SELECT id, UNIX_TIMESTAMP(ts) FROM v WHERE ts IS NOT NULL ORDER BY id"
    assert cluster.secondaries[0].rows(query) == cluster.primary.rows(query)


def test_values_of_sqlite_keep_their_storage_class(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("sqlite", schema=[schema(SQLITE)], tables="v\n")
    check(cluster, SQLITE, [])
    for name in SQLITE:
        query = f"SELECT id, typeof({name}), quote({name}) FROM v ORDER BY id"
        assert cluster.secondaries[0].rows(query) == cluster.primary.rows(query)


def test_reals_of_sqlite_survive_to_the_last_bit(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("sqlite", schema=["CREATE TABLE f (id INTEGER PRIMARY KEY, v REAL)"], tables="f\n")
    chosen = random.Random(1)
    values = [{"i": i, "v": chosen.uniform(-1, 1) * 10.0 ** chosen.randint(-300, 300)} for i in range(5000)]
    cluster.start()
    with cluster.primary.engine.begin() as connection:
        connection.execute(text("INSERT INTO f VALUES (:i, :v)"), values)
    cluster.wait_equal()
    assert cluster.secondaries[0].rows("SELECT v FROM f ORDER BY id") == [(one["v"],) for one in values]


def test_generated_and_identity_columns(new_cluster: MakeCluster, database_kind: str) -> None:
    """Generated columns are not sent, identity values are the primary's; 0 stays 0 on MariaDB."""
    kinds = {
        "sqlite": "id INTEGER PRIMARY KEY AUTOINCREMENT, a INT, b INT GENERATED ALWAYS AS (a * 2) STORED",
        "postgresql": "id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a INT, b INT GENERATED ALWAYS AS (a * 2) STORED",
        "mariadb": "id BIGINT AUTO_INCREMENT PRIMARY KEY, a INT, b INT GENERATED ALWAYS AS (a * 2) STORED",
    }
    cluster = new_cluster(database_kind, schema=[f"CREATE TABLE g ({kinds[database_kind]})"], tables="g\n")
    cluster.start()
    cluster.primary.execute(
        "INSERT INTO g (a) VALUES (1)", "INSERT INTO g (a) VALUES (2)", "UPDATE g SET a = 3 WHERE id = 1"
    )
    if database_kind == "mariadb":
        cluster.primary.execute(
            "SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'", "INSERT INTO g (id, a) VALUES (0, 9)", "SET sql_mode = DEFAULT"
        )
    cluster.wait_equal()
    query = "SELECT id, a, b FROM g ORDER BY id"
    assert cluster.secondaries[0].rows(query) == cluster.primary.rows(query)
