"""Rows that are taken out and put back are what they were: identities, computed columns, values as the engine keeps them (TRAPS 30,
32); triggers of other programs see an installation as they see replay; readers are not held up."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.errors import NotApplicable
from deploy.servers import PrivatePostgreSQL
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster, transaction
from tests.installing import Pair, right

NewPair = Callable[..., Pair]


@pytest.fixture
def new_pair(tmp_path: Path, new_database: NewDatabase) -> Iterator[NewPair]:
    """Makes two databases: `(kind, *schema, tables=…)`."""
    made: list[Pair] = []

    def make(kind: str, *schema: str, tables: str) -> Pair:
        cluster = make_cluster(
            tmp_path / "c", kind, NO_BROKER, new_database, schema=schema, tables=tables, nodes=("st1", "st2")
        )
        made.append(Pair(cluster))
        return made[-1]

    yield make
    for one in made:
        for node in one.cluster.nodes.values():
            node.close()


def swap(table: str, column: str, *, one: int = 1, other: int = 2) -> list[str]:
    """Statements that give two rows each other's values, 'a' and 'b'."""
    return [
        f"UPDATE {table} SET {column} = 'tmp' WHERE id = {one}",
        f"UPDATE {table} SET {column} = 'a' WHERE id = {other}",
        f"UPDATE {table} SET {column} = 'b' WHERE id = {one}",
    ]


IDENTITY = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "mariadb": "BIGINT AUTO_INCREMENT PRIMARY KEY",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}


@pytest.mark.parametrize("above", ["", ", FOREIGN KEY (above) REFERENCES t (id)"], ids=["alone", "self reference"])
def test_identities_and_computed_columns(new_pair: NewPair, database_kind: str, above: str) -> None:
    """`id = 0` too, which MariaDB would number anew."""
    check_identities(new_pair, database_kind, above)


def test_identities_where_foreign_keys_may_be_switched_off(new_pair: NewPair, postgresql: PrivatePostgreSQL) -> None:
    with right(postgresql):
        check_identities(new_pair, "postgresql", "")


def check_identities(new_pair: NewPair, database_kind: str, above: str) -> None:
    schema = (
        f"CREATE TABLE t (id {IDENTITY[database_kind]}, name VARCHAR(20) NOT NULL UNIQUE, above BIGINT, twice VARCHAR(50) GENERATED"
        f" ALWAYS AS (CONCAT(name, name)) STORED, seen VARCHAR(20) DEFAULT 'x' NOT NULL{above})"
    )
    if database_kind != "mariadb":
        schema = schema.replace("CONCAT(name, name)", "name || name")
    pair = new_pair(database_kind, schema, tables="t exclude=seen\n")
    overriding = " OVERRIDING SYSTEM VALUE" if database_kind == "postgresql" else ""
    zero = ["SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'"] if database_kind == "mariadb" else []
    insert = f"INSERT INTO t (id, name, above, seen){overriding} VALUES "
    for node in (pair.primary, pair.secondary):
        node.execute(*zero, f"{insert} (0, 'a', NULL, '{node.name}0'), (2, 'b', 0, '{node.name}2')")
    pair.primary.execute(*swap("t", "name", one=0))
    pair.install()
    assert pair.cluster.differences() == []
    assert pair.secondary.rows("SELECT id, name, twice, seen FROM t ORDER BY id") == [
        (0, "b", "bb", "st20"),
        (2, "a", "aa", "st22"),
    ]


def test_a_new_zero(new_pair: NewPair, database_kind: str) -> None:
    schema = f"CREATE TABLE t (id {IDENTITY[database_kind]}, name VARCHAR(20), above BIGINT, FOREIGN KEY (above) REFERENCES t (id))"
    pair = new_pair(database_kind, schema, tables="t\n")
    overriding = " OVERRIDING SYSTEM VALUE" if database_kind == "postgresql" else ""
    zero = ["SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'"] if database_kind == "mariadb" else []
    pair.primary.execute(*zero, f"INSERT INTO t (id, name, above){overriding} VALUES (0, 'a', NULL), (2, 'b', 0)")
    pair.install()
    assert pair.cluster.differences() == []


VALUES = {
    "postgresql": "n NUMERIC, f FLOAT8, j JSON, b BYTEA, ts TIMESTAMPTZ, arr TEXT[]",
    "mariadb": "n DECIMAL(65,30), f DOUBLE, j JSON, b VARBINARY(20), ts TIMESTAMP(6) NULL, arr BIT(9)",
    "sqlite": "n NUMERIC, f REAL, j TEXT, b BLOB, ts, arr ANY",
}
FIRST = {
    "postgresql": "'NaN', 1e-300, '{\"a\": 18446744073709551616}', '\\x0001', '2024-02-29 12:00:00.123456+02', '{\"a,b\",NULL}'",
    "mariadb": "1234567890.123456789012345678901234567890, 1e-300, '{\"a\": 1}', x'0001', '2024-02-29 12:00:00.123456', b'101'",
    "sqlite": "'12x', 1e-300, '{}', x'0001', '1', '1'",
}


def test_values_are_put_back_as_they_were(new_pair: NewPair, database_kind: str) -> None:
    schema = f"CREATE TABLE t (id BIGINT PRIMARY KEY, name VARCHAR(20) UNIQUE, {VALUES[database_kind]})"
    strict = "CREATE TABLE s (id INTEGER PRIMARY KEY, name TEXT UNIQUE, a ANY, b ANY) STRICT"
    is_sqlite = database_kind == "sqlite"
    pair = new_pair(
        database_kind,
        schema,
        *([strict] if is_sqlite else []),
        tables=f"t exclude=n,b\n{'s exclude=a' if is_sqlite else ''}\n",
    )
    rows = [f"INSERT INTO t VALUES ({one}, '{name}', {FIRST[database_kind]})" for one, name in ((1, "a"), (2, "b"))]
    rows += [f"INSERT INTO s VALUES ({one}, '{name}', '1', '2')" for one, name in ((1, "a"), (2, "b")) if is_sqlite]
    for node in (pair.primary, pair.secondary):
        with node.engine.begin() as link:
            for row in rows:
                link.exec_driver_sql(row.replace("%", "%%"))
    everything = "SELECT * FROM t ORDER BY id"
    before = pair.secondary.rows(everything)
    typed = pair.secondary.rows("SELECT typeof(a), typeof(b) FROM s") if is_sqlite else []
    pair.primary.execute(*swap("t", "name"), *(swap("s", "name") if is_sqlite else []))
    pair.install()
    assert pair.cluster.differences() == []
    after = pair.secondary.rows(everything)
    assert repr([row[2:] for row in after]) == repr([row[2:] for row in before])
    assert typed == (pair.secondary.rows("SELECT typeof(a), typeof(b) FROM s") if is_sqlite else [])


MADE = {
    "postgresql": (
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO noted VALUES (NEW.id); RETURN NULL; END $$",
        "CREATE TRIGGER z AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note()",
    ),
    "mariadb": ("CREATE TRIGGER z AFTER INSERT ON t FOR EACH ROW INSERT INTO noted VALUES (NEW.id)",),
    "sqlite": ("CREATE TRIGGER z AFTER INSERT ON t BEGIN INSERT INTO noted VALUES (NEW.id); END",),
}


def test_triggers_of_other_programs_run_as_they_do_in_replay(new_pair: NewPair, database_kind: str) -> None:
    pair = new_pair(
        database_kind,
        "CREATE TABLE t (id BIGINT PRIMARY KEY)",
        "CREATE TABLE noted (id BIGINT)",
        *MADE[database_kind],
        tables="t\n",
    )
    pair.primary.execute("INSERT INTO t VALUES (1)")
    pair.install()
    assert pair.secondary.rows("SELECT id FROM noted") == [(1,)]


def test_readers_are_not_held_up_and_hold_nothing_up(new_pair: NewPair, database_kind: str) -> None:
    """Not before, and not while all is written but not yet committed; in place, in a circle, and where rows are in the way."""
    pair = new_pair(
        database_kind,
        "CREATE TABLE t (id BIGINT PRIMARY KEY, name VARCHAR(20) UNIQUE, above BIGINT, FOREIGN KEY (above) REFERENCES t (id))",
        "CREATE TABLE child (id BIGINT PRIMARY KEY, t_id BIGINT, FOREIGN KEY (t_id) REFERENCES t (id) ON DELETE CASCADE)",
        tables="t\nchild\n",
    )
    rows = ("INSERT INTO t VALUES (1, 'a', NULL), (2, 'b', 1)", "INSERT INTO child VALUES (1, 1), (2, 2)")
    for node in (pair.primary, pair.secondary):
        node.execute(*rows)
    pair.primary.execute(*swap("t", "name"), "INSERT INTO t VALUES (3, 'c', 2)")
    seen = []
    with transaction(pair.secondary) as reader:
        reader.exec_driver_sql("SELECT * FROM t JOIN child ON t.id = t_id").all()
        pair.install(
            lambda _: seen.extend(pair.secondary.rows("SELECT t.id, name FROM t JOIN child ON t.id = t_id ORDER BY 1"))
        )
    assert seen == [(1, "a"), (2, "b")]
    assert pair.cluster.differences() == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "postgresql allowed"])
def test_what_a_local_row_would_hand_on_to_a_listed_one_does_not_reach_it(
    new_pair: NewPair, kind: str, request: pytest.FixtureRequest
) -> None:
    """The local row goes with its parent; what refers to it is on the primary as it is here. (MariaDB: such a list is refused.)"""
    engine, *allowed = kind.split()
    pair = new_pair(
        engine,
        "CREATE TABLE grp (id BIGINT PRIMARY KEY)",
        "CREATE TABLE member (id BIGINT PRIMARY KEY, mine INT, grp_id BIGINT, FOREIGN KEY (grp_id) REFERENCES grp (id)"
        " ON DELETE CASCADE)",
        "CREATE TABLE login (id BIGINT PRIMARY KEY, member_id BIGINT, FOREIGN KEY (member_id) REFERENCES member (id)"
        " ON DELETE CASCADE)",
        tables='grp\nmember where="mine = 0"\nlogin\n',
    )
    for node, parent in ((pair.primary, "NULL"), (pair.secondary, "1")):
        node.execute(
            "INSERT INTO grp VALUES (1)", f"INSERT INTO member VALUES (70, 1, {parent})", "INSERT INTO login VALUES (5, 70)"
        )
    pair.primary.execute("DELETE FROM grp")
    with right(request.getfixturevalue("postgresql")) if allowed else nullcontext():
        if kind == "postgresql":
            with pytest.raises(NotApplicable, match="GRANT SET ON PARAMETER"):
                pair.install()
            assert pair.secondary.rows("SELECT id FROM login") == [(5,)]
            return
        pair.install()
    assert pair.cluster.differences() == []
    assert pair.secondary.rows("SELECT id FROM member") == []
