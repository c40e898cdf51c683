"""Values arrive exactly as the engine stores them, whatever the writer's session says (TRAPS 30)."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, Node, make_cluster
from tests.pipeline import Pipeline

MakeCluster = Callable[..., Cluster]

POSTGRESQL = {
    "n": (
        "numeric",
        [
            "0.1000000000000000000000000000001",
            "'NaN'",
            "123456789012345678901234567890.123456789",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    "big": ("bigint", ["9223372036854775807", "-9223372036854775808"]),
    "bo": ("boolean", ["true", "false"]),
    "d": ("double precision", ["0.1", "'Infinity'", "'-Infinity'", "'NaN'", "1e-320", "'-0.0'"]),
    "r": ("real", ["0.1", "3.4e38", "'NaN'", "'-Infinity'", "1e-45"]),
    "t": (
        "timestamptz",
        ["'2024-03-31 02:30:00.123456+02'", "'infinity'", "'0044-03-15 12:00:00+00 BC'", "'294276-12-31 23:59:59+00'"],
    ),
    "p": ("timestamp(3)", ["'2024-02-29 12:34:56.789'", "'-infinity'"]),
    "tz": ("timetz", ["'24:00:00-15:59'", "'01:02:03.000004+05:45'"]),
    "da": ("date", ["'infinity'", "'2024-02-29'", "'4713-01-01 BC'"]),
    "ti": ("time", ["'24:00:00'", "'12:34:56.000001'"]),
    "iv": ("interval", ["'1 year -2 months 3 days 04:05:06.789'"]),
    "b": ("bytea", [r"'\x00ff00'", "''"]),
    "j": ("json", ['\'{"b": 1,  "a": 18446744073709551616}\'', "'null'", "'\"text\"'"]),
    "jb": ("jsonb", ["'[1.10, null, \"x\"]'", "'null'", "'\"text\"'", "'18446744073709551616.10'", "'true'"]),
    "bi": ("bit(5)", ["B'10101'"]),
    "vb": ("varbit", ["B'1'"]),
    "ch": ("char(5)", ["'ab'"]),
    "vc": ("varchar(10)", ["''", "'  sp  '"]),
    "qc": ('"char"', ["'x'"]),
    "ar": ("text[]", ["ARRAY['a,b', 'c\"d', NULL, '']", "'{}'"]),
    "a2": ("int[][]", ["ARRAY[[1,2],[3,4]]", "'[0:1]={7,8}'"]),
    "a3": ("bytea[]", [r"ARRAY['\x00ff'::bytea, NULL, '']"]),
    "a4": ("timestamptz[]", ["ARRAY['2024-03-31 02:30:00.5+02'::timestamptz, 'infinity']"]),
    "a5": ("numeric[]", ["ARRAY['NaN'::numeric, 0.10]"]),
    "a6": ("pair[]", ["ARRAY[ROW(1, 'x,\"y')::pair, ROW(NULL, '')::pair]"]),
    "a7": ("mood[]", ["ARRAY['ok'::mood, 'it''s, \"fine\"']"]),
    "rg": ("int4range", ["'[1,5)'", "'empty'"]),
    "rt": ("tstzrange", ["'[\"2024-01-01 00:00:00+02\",infinity)'"]),
    "mr": ("nummultirange", ["'{[1.5,2.25),[7,)}'"]),
    "mo": ("mood", ["'it''s, \"fine\"'"]),
    "co": ("pair", ["ROW(1, 'x,\"y')"]),
    "do_": ("posint", ["7"]),
    "sh": ("short", ["'four'"]),
    "xm": ("xml", ["'<a b=\"1\">ü &amp; x</a>'"]),
    "ts_": ("tsvector", ["'a:1A fat:2'"]),
    "pt": ("point", ["'(0.1,-1e-30)'"]),
    "u": ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    "ip": ("inet", ["'::1/128'"]),
    "m": ("money", ["12.34"]),
    "x": ("text", ["repeat('ü', 600000)", r"E'line\nfeed\ttab \\ \x01'"]),
}
MARIADB = {
    "bu": ("bigint unsigned", ["18446744073709551615", "9223372036854775808"]),
    "de": (
        "decimal(65,30)",
        ["12345678901234567890123456789012345.123456789012345678901234567891", "-0.000000000000000000000000000001"],
    ),
    "si": ("bigint", ["-9223372036854775808"]),
    "f": ("float", ["0.1", "3.4e38"]),
    "d": ("double", ["0.1", "1e-300", "1.7976931348623157e308", "-0.0e0"]),
    "bi": ("bit(12)", ["b'101010101010'"]),
    "b64": ("bit(64)", ["18446744073709551615", "0"]),
    "y": ("year", ["1999"]),
    "da": ("date", ["'0000-00-00'", "'2024-02-30'", "'2024-00-00'"]),
    "dt": ("datetime(6)", ["'0000-00-00 00:00:00'", "'2024-03-31 02:30:00.123456'"]),
    "ts": ("timestamp(3) null", ["'2024-10-27 02:30:00.5'", "'1970-01-01 12:00:01'", "'0000-00-00 00:00:00'"]),
    "t6": ("timestamp(6) null", ["'2024-10-27 02:30:00.123456'"]),
    "ti": ("time(2)", ["'-838:59:59'", "'24:00:00.25'"]),
    "e": ("enum('a','it''s','x,y')", ["'it''s'", "'x,y'"]),
    "en": ("enum('2','1','null')", ["'1'", "'null'"]),
    "se": ("set('a','b','c')", ["'a,c'", "''"]),
    "b": ("varbinary(20)", ["X'00FF00'", "''"]),
    "bf": ("binary(4)", ["X'41000000'", "X'20202020'"]),
    "vc": ("varchar(40)", ["'null'", r"'it''s \\ \0 % %s'", "'  sp  '"]),
    "ch": ("char(6)", ["'ab'"]),
    "bl": ("longblob", ["X'0001'"]),
    "j": ("json", ['\'{"b": 1,  "a": 18446744073709551616}\'', "'null'", "'1'", "'\"text\"'", "'[]'"]),
    "jv": ("varchar(99) CHECK (json_valid(jv))", ["'{\"a\": [1, null]}'", "'null'", "'1'", "'\"text\"'", "'[]'"]),
    "jt": ("text CHARACTER SET latin1 CHECK (json_valid(jt))", ['\'{"a": "é"}\'', "'null'", "'1'", "'[1, 2]'"]),
    "jm": ("mediumtext CHARACTER SET utf8mb4 CHECK (json_valid(jm))", ['\'{"a": "é"}\'', "'null'", "'true'", "'[1, 2]'"]),
    "ez": ("enum('é CHARACTER SET utf8mb4 COLLATE x','y') CHARACTER SET latin1", ["'é CHARACTER SET utf8mb4 COLLATE x'"]),
    "zf": ("int(8) unsigned zerofill", ["42"]),
    "l1": ("varchar(20) character set latin1", ["'café'"]),
    "ci": ("varchar(20)", ["'MiXed  '", "''"]),
    "x": ("longtext", ["repeat('ü', 600000)", r"'line\nfeed\ttab \\ 😀'"]),
    "g": ("point", ["ST_GeomFromText('POINT(1.5 -2)')"]),
    "i6": ("inet6", ["'::1'", "'2001:db8::ff00:42:8329'"]),
    "i4": ("inet4", ["'192.0.2.1'"]),
    "uu": ("uuid", ["'123e4567-e89b-12d3-a456-426655440000'"]),
}
SHOWN_BY_MARIADB = {
    "ts": "UNIX_TIMESTAMP(ts)",
    "t6": "UNIX_TIMESTAMP(t6)",
    "f": "CAST(f AS DOUBLE)",
    "bi": "bi + 0",
    "b64": "b64 + 0",
}
SQLITE = {
    "any_": ("", ["1", "'1'", "1.0", "X'31'", "9223372036854775807", "-9223372036854775808", "9e999", "-0.0"]),
    "i": ("INTEGER", ["'text in it'", "1.5", "42"]),
    "r": ("REAL", ["0.1", "1e-320", "3"]),
    "n": ("NUMERIC", ["'123456789012345678901234567890'", "0.1"]),
    "t": (
        "TEXT",
        [
            "''",
            "'12'",
            "replace(hex(zeroblob(600000)), '0', 'x')",
            "'  sp  '",
            "'😀 \"q\" \\ ' || char(10) || char(9) || char(1)",
        ],
    ),
    "b": ("BLOB", ["X'00FF00'", "X''", "'text'"]),
    "no": ("TEXT COLLATE NOCASE", ["'MiXed'"]),
}
# Of a type, a value and what it is updated to: the engine takes them for equal (but for the case of some), and shows them otherwise.
# SQLite shows no difference between 0.0 and -0.0, neither in its text nor by `=`, and has no portable way to tell them apart.
ALIKE = {
    "postgresql": [
        ("numeric", "1.0", "1.00"),
        ("numeric[]", "'{1.0}'", "'{1.00}'"),
        ("interval", "'1 day'", "'24:00:00'"),
        ("double precision", "'-0.0'", "'0.0'"),
        ("double precision", "'0.0'", "'-0.0'"),
        ("real", "'-0.0'", "'0.0'"),
        ("real", "'0.0'", "'-0.0'"),
        ("jsonb", "'1.0'", "'1.00'"),
        ("numrange", "'[1.0,2)'", "'[1.00,2)'"),
        ("char(5)", "'a'", "'A'"),
        ("text", "'a'", "'A'"),
        ("text", "'a'", "'a '"),
    ],
    "mariadb": [
        ("varchar(20)", "'a'", "'A'"),
        ("varchar(20)", "'a'", "'a '"),
        ("varchar(20)", "'e'", "'é'"),
        ("varchar(20) CHARACTER SET latin1", "'e'", "'é'"),
        ("char(6)", "'a'", "'A'"),
        ("text", "'a'", "'a '"),
    ],
    "sqlite": [
        ("", "1", "1.0"),
        ("", "1.0", "1"),
        ("", "1", "'1'"),
        ("", "'1'", "1"),
        ("TEXT COLLATE NOCASE", "'x'", "'X'"),
        ("TEXT COLLATE RTRIM", "'x'", "'x '"),
    ],
}


@contextmanager
def session_of(node: Node, settings: list[str]) -> Iterator[Connection]:
    """A session with these settings, which end with it."""
    with node.engine.connect() as connection:
        for setting in settings:
            connection.execute(text(setting))
        yield connection
        connection.commit()
    node.engine.dispose()


def check(
    cluster: Cluster,
    columns: dict[str, tuple[str, list[str]]],
    session: list[str],
    shown: Callable[[str], str],
    literal: Callable[[str, str], str | None] = lambda _, value: value,
) -> None:
    """Each value alone in a row of NULLs: inserted, updated, moved to another key, deleted; after each, nodes are compared by the
    engine's own text in a session that is not ours, and those that have the value by its `=` in one like the writer's.
    `shown`: SQL that shows a column to the bit; `literal`: what equals a value of a type, None where the type has no `=`."""
    cluster.start()
    values = [(name, one.replace(":", r"\:")) for name, (_, found) in columns.items() for one in found]
    numbered = list(enumerate(values, 1))
    steps = [
        [f"INSERT INTO v (id, {name}) VALUES ({number}, {value})" for number, (name, value) in numbered]
        + [f"INSERT INTO v (id) VALUES ({number + 1000})" for number, _ in numbered],
        [f"UPDATE v SET {name} = {value} WHERE id = {number + 1000}" for number, (name, value) in numbered],
        [f"UPDATE v SET id = id + 5000, {name} = NULL WHERE id = {number}" for number, (name, _) in numbered]
        + ["UPDATE v SET id = id + 5000 WHERE id < 2000"],
        ["DELETE FROM v WHERE id < 6000"],
    ]
    for step, statements in enumerate(steps):
        with session_of(cluster.primary, session) as connection:
            for statement in statements:
                connection.execute(text(statement))
        cluster.wait_equal()
        for name in columns:
            query = f"SELECT id, {shown(name)} FROM v ORDER BY id"
            expected = cluster.primary.rows(query)
            assert all(node.rows(query) == expected for node in cluster.secondaries), name
        for node in cluster.secondaries if step < 2 else ():
            with session_of(node, session) as connection:
                for number, (name, value) in numbered:
                    equal = literal(columns[name][0], value)
                    if equal is not None:
                        query = f"SELECT count(*) FROM v WHERE id = {number + 1000 * step} AND {name} = {equal}"
                        assert connection.execute(text(query)).scalar_one() == 1, (node.name, name, value)
    for node in cluster.secondaries:
        assert node.command("quarantine", "list").returncode == 0
        assert node.rows("SELECT count(*) FROM v") == [(len(numbered),)]


def schema(columns: dict[str, tuple[str, list[str]]]) -> str:
    return f"CREATE TABLE v (id BIGINT PRIMARY KEY, {', '.join(f'{name} {kind}' for name, (kind, _) in columns.items())})"


def test_values_of_postgresql(new_cluster: MakeCluster) -> None:
    types = (
        "CREATE TYPE mood AS ENUM ('ok', 'it''s, \"fine\"')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(4)",
    )
    cluster = new_cluster("postgresql", schema=[*types, schema(POSTGRESQL)], tables="v\n")
    for node in cluster.secondaries:
        ((name,),) = node.rows("SELECT current_database()")
        for setting in ("timezone = 'America/St_Johns'", "datestyle = 'German'", "intervalstyle = 'iso_8601'",
                        "bytea_output = 'escape'", "extra_float_digits = -15"):  # fmt: skip
            node.execute(f"ALTER DATABASE {name} SET {setting}")
    for node in cluster.nodes.values():
        node.engine.dispose()
        seen = (
            "-c timezone=Asia/Tokyo -c datestyle=Postgres,DMY -c extra_float_digits=3 -c intervalstyle=postgres_verbose"
            " -c bytea_output=hex"
        )
        node._engine = create_engine(node.url, connect_args={"options": seen})
    session = ["SET timezone = 'Asia/Kathmandu'", "SET datestyle = 'SQL, DMY'", "SET extra_float_digits = -15",
               "SET bytea_output = 'escape'", "SET intervalstyle = 'sql_standard'"]  # fmt: skip
    check(cluster, POSTGRESQL, session, lambda name: f"{name}::text", literal_of_postgresql)


def literal_of_postgresql(kind: str, value: str) -> str | None:
    """Alone, a number would be compared with a `real` as double precision, and not at all with `money`."""
    return None if kind in {"json", "xml", "point"} else f"CAST({value} AS {kind})"


@pytest.fixture
def other_defaults(mariadb: PrivateMariaDB) -> Iterator[None]:
    """Every new session of the server begins with settings that change what text means; ours are to pin theirs."""
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)
    names = ("sql_mode", "time_zone")
    with administrator.connect() as connection:
        before = {name: connection.execute(text(f"SELECT @@global.{name}")).scalar_one() for name in names}
        connection.execute(
            text("SET GLOBAL sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,PIPES_AS_CONCAT'")
        )
        connection.execute(text("SET GLOBAL time_zone = '-03:30'"))
    yield
    with administrator.connect() as connection:
        for name, value in before.items():
            connection.execute(text(f"SET GLOBAL {name} = :v"), {"v": value})


@pytest.mark.usefixtures("other_defaults")
def test_values_of_mariadb(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("mariadb", schema=[schema(MARIADB)], tables="v\n")
    session = ["SET time_zone = '+05:45'", "SET sql_mode = 'ALLOW_INVALID_DATES,PIPES_AS_CONCAT'"]
    check(cluster, MARIADB, session, shown_by_mariadb, literal_of_mariadb)


def literal_of_mariadb(kind: str, value: str) -> str:
    """Alone, a number would be compared with a `float` as double."""
    return f"CAST({value} AS FLOAT)" if kind == "float" else value


def shown_by_mariadb(name: str) -> str:
    return SHOWN_BY_MARIADB.get(name, f"HEX(CONCAT({name}, ''))")


@pytest.mark.usefixtures("other_defaults")
@pytest.mark.parametrize("half", [0, 1])
def test_values_of_mariadb_where_many_rows_come_together(
    mariadb: PrivateMariaDB, new_cluster: MakeCluster, half: int
) -> None:
    """They go into prepared statements there, and no text in them is parsed as SQL."""
    columns = dict(list(MARIADB.items())[half::2])
    cluster = new_cluster("mariadb", schema=[schema(columns)], tables="v\n")
    values = [(name, one) for name, (_, found) in columns.items() for one in found if "repeat" not in one]
    cluster.start()
    before = executed(mariadb)
    with cluster.primary.engine.begin() as connection:
        connection.execute(text("SET time_zone = '+05:45', sql_mode = 'ALLOW_INVALID_DATES'"))
        for number, (name, value) in enumerate(values * 40, 1):
            connection.execute(text(f"INSERT INTO v (id, {name}) VALUES ({number}, {value.replace(':', chr(92) + ':')})"))
    cluster.primary.engine.dispose()
    cluster.wait_equal()
    assert executed(mariadb) - before >= 8 * len(cluster.secondaries)
    for name in columns:
        query = f"SELECT id, {shown_by_mariadb(name)} FROM v ORDER BY id"
        expected = cluster.primary.rows(query)
        assert all(node.rows(query) == expected for node in cluster.secondaries), name


def executed(mariadb: PrivateMariaDB) -> int:
    """How many prepared statements the server has run."""
    with create_engine(mariadb.admin_url, poolclass=NullPool).connect() as connection:
        return int(connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Com_stmt_execute'").one()[1])


def test_values_of_sqlite_keep_their_storage_class(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("sqlite", schema=[schema(SQLITE)], tables="v\n")
    check(cluster, SQLITE, [], lambda name: f"typeof({name}), quote({name})")


def test_reals_of_sqlite_survive_to_the_last_bit(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("sqlite", schema=["CREATE TABLE f (id INTEGER PRIMARY KEY, v REAL)"], tables="f\n")
    chosen = random.Random(1)
    values = [{"i": i, "v": chosen.uniform(-1, 1) * 10.0 ** chosen.randint(-300, 300)} for i in range(5000)]
    cluster.start()
    with cluster.primary.engine.begin() as connection:
        connection.execute(text("INSERT INTO f VALUES (:i, :v)"), values)
    cluster.wait_equal()
    assert cluster.secondaries[0].rows("SELECT v FROM f ORDER BY id") == [(one["v"],) for one in values]


def test_an_update_to_what_is_equal_but_not_the_same(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> None:
    """Whether anything changed is for the text to say, not for the engine's `=`."""
    alike = {f"c{number}": one for number, one in enumerate(ALIKE[database_kind])}
    create = schema({name: (kind, []) for name, (kind, _, _) in alike.items()})
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=[create], tables="v\n", nodes=("st1", "st2")
    )
    shown = {"postgresql": "{}::text", "mariadb": "HEX(CONCAT({}, ''))", "sqlite": "{}"}[database_kind]

    def seen(node: Node) -> list[str]:
        """What the row of each case has."""
        return [repr(node.rows(f"SELECT {shown.format(name)} FROM v WHERE id = {name[1:]}")) for name in alike]

    with closing(Pipeline(cluster)) as pipeline:
        pipeline.primary.execute(*[f"INSERT INTO v (id, {c}) VALUES ({c[1:]}, {old})" for c, (_, old, _) in alike.items()])
        pipeline.move()
        inserted = [seen(node) for node in cluster.nodes.values()]
        pipeline.primary.execute(*[f"UPDATE v SET {c} = {new} WHERE id = {c[1:]}" for c, (_, _, new) in alike.items()])
        pipeline.move()
        updated = [seen(node) for node in cluster.nodes.values()]
        assert pipeline.wrong() == []
    stages = list(zip(alike.values(), zip(*inserted, strict=True), zip(*updated, strict=True), strict=True))
    assert [case for case, before, after in stages if before[0] == after[0]] == []
    assert [stage for stage in stages if any(here != there for here, there in stage[1:])] == []


def test_mariadb_has_no_negative_zero(new_database: NewDatabase) -> None:
    """So that floats may be compared by `<=>` in triggers: no two that are equal differ in anything."""
    engine = create_engine(new_database("mariadb"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE z (d DOUBLE, f FLOAT, p DOUBLE(10,2), g DOUBLE AS (d * -1) STORED)")
        connection.exec_driver_sql("INSERT INTO z (d, f, p) VALUES (-0.0e0, '-0', -0.001), (0.0e0, 0.0e0, 0.001)")
        for change in ("d = d", "d = -d, f = f * -1, p = -p", "d = -0.0e0, f = -0.0e0, p = '-0.0'"):
            connection.exec_driver_sql(f"UPDATE z SET {change}")
            signs = connection.exec_driver_sql("SELECT ATAN2(d, -1), ATAN2(f, -1), ATAN2(p, -1), ATAN2(g, -1) FROM z").all()
            assert [tuple(sign > 0 for sign in row) for row in signs] == [(True,) * 4] * 2
        assert connection.exec_driver_sql("SELECT ATAN2(-0.0e0, -1) < 0").scalar_one() == 1


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


def test_columns_may_stand_in_another_order_and_names_may_need_quoting(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 30: values go by column name, and any name is one."""
    q = "`" if database_kind == "mariadb" else '"'
    odd, first, second, third = (f"{q}{name}{q}" for name in ("odd na%me's", "sel%ect", "x y", "Order"))
    create = f"CREATE TABLE {odd} ({{}}, PRIMARY KEY ({second}, {first}))"
    parts = [f"{first} INT NOT NULL", f"{second} VARCHAR(20) NOT NULL", f"{third} VARCHAR(20)"]
    listed = '"odd na%me\'s"\n'
    cluster = new_cluster(database_kind, schema=[create.format(", ".join(parts))], tables=listed, nodes=("st1", "st2"))
    node = cluster.nodes["st2"]
    node.execute(f"DROP TABLE {odd}", create.format(", ".join(reversed(parts))))
    assert node.command("install").returncode == 0
    cluster.start()
    for statement in (
        f"INSERT INTO {odd} ({first}, {second}, {third}) VALUES (1, 'a', 'one'), (2, 'b', 'two'), (3, 'c', 'three')",
        f"UPDATE {odd} SET {third} = 'new' WHERE {first} = 1",
        f"UPDATE {odd} SET {second} = 'moved' WHERE {first} = 2",
        f"DELETE FROM {odd} WHERE {first} = 3",
    ):
        cluster.primary.execute(statement)
        cluster.wait_equal()
    query = f"SELECT {first}, {second}, {third} FROM {odd} ORDER BY 1"
    assert node.rows(query) == [(1, "a", "new"), (2, "moved", "two")]
    assert node.command("quarantine", "list").returncode == 0
