"""A secondary whose schema differs: what it refuses waits with its reason, the rest goes on, and it heals (TRAPS 6, 29)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer import replay
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_arrived, wait_running, wait_told
from tests.faults.test_misconfiguration import change, expect
from tests.faults.test_quarantine import listed, wait_quarantined
from tests.harness import NO_BROKER, Cluster, Node, make_cluster
from tests.integration.conftest import MakeCluster
from tests.pipeline import Pipeline

ITEM = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE, note VARCHAR(40))"
SCHEMA = (ITEM, "CREATE TABLE other (id BIGINT PRIMARY KEY, name VARCHAR(40))")
BY_ITSELF, WHEN_ASKED = (f"[replay]\nretry_quarantine_s = {seconds}\n" for seconds in (0.3, 600))
NEW_COLUMN = "ALTER TABLE item ADD COLUMN extra VARCHAR(40)"
# Rows take the names and the keys that others have just given up: in another order they end otherwise, or not at all.
IN_ORDER = (
    "INSERT INTO item (id, name, note) VALUES (1, 'a', 'x'), (2, 'b', 'x'), (3, 'c', 'x')",
    "UPDATE item SET name = 'was a' WHERE id = 1",
    "INSERT INTO item (id, name, note) VALUES (4, 'a', 'y')",
    "DELETE FROM item WHERE id = 2",
    "INSERT INTO item (id, name, note) VALUES (5, 'b', 'y'), (2, 'two again', 'y')",
    "UPDATE item SET id = 6, name = 'was c' WHERE id = 3",
    "INSERT INTO item (id, name, note) VALUES (3, 'c', 'z')",
    "UPDATE item SET id = 7 WHERE id = 6",
    "UPDATE item SET note = 'all' WHERE id < 5",
    "DELETE FROM item WHERE id = 4",
    "UPDATE item SET name = 'a' WHERE id = 1",
    "DELETE FROM item WHERE id = 7",
    "INSERT INTO item (id, name, note) VALUES (7, 'seven', 'z'), (8, 'was a', 'z')",
)


@pytest.fixture
def tables() -> str:
    """The list of every node."""
    return "item\nother\n"


@pytest.fixture
def settings() -> str:
    """Of every node."""
    return BY_ITSELF


@pytest.fixture
def cluster(new_cluster: MakeCluster, database_kind: str, tables: str, settings: str) -> Cluster:
    """A primary and a secondary; their services run."""
    found = new_cluster(database_kind, schema=SCHEMA, tables=tables, nodes=("st1", "st2"), settings=settings)
    found.start()
    wait_running(*found.nodes.values())
    return found


def one_by_one(cluster: Cluster, *statements: str) -> None:
    """Each a change set of its own, which the secondary has before the next."""
    for statement in statements:
        cluster.primary.execute(statement)
        wait_arrived(cluster)


def told_everywhere(cluster: Cluster, *words: str) -> None:
    """`quarantine list` and `status` of the secondary, and `status` of the primary; and nothing else is held up by it."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    entries = listed(node)
    assert entries
    for entry in entries:
        assert entry["table"] == "item"
        for word in words:
            assert word in entry["reason"].lower()
    one_by_one(cluster, "INSERT INTO other SELECT count(*), 'goes on' FROM other")
    assert node.rows("SELECT * FROM other") == primary.rows("SELECT * FROM other")

    def agree() -> bool:
        own, reported = node.status(), primary.status()["nodes"][0]
        number = len(listed(node))
        return all(
            one["state"] == "in_sync" and one["quarantined"] == number > 0 and str(number) in one["reason"]
            for one in (own, reported)
        )

    wait_told(agree, lambda: (node.status(), primary.status(), listed(node)), 20)


@pytest.mark.parametrize("tables", ["item\nother\n", "*\n"], ids=["named", "glob"])
def test_a_table_that_is_made_by_hand_takes_what_waited_for_it(cluster: Cluster) -> None:
    """TRAPS 6, 29: while the service runs, without any command, in order, later changes of the same rows included."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    node.execute("DROP TABLE item")
    half = len(IN_ORDER) // 2
    one_by_one(cluster, *IN_ORDER[:half])
    told_everywhere(cluster, "item")
    primary.execute(*IN_ORDER[half:])
    wait_arrived(cluster)
    node.execute(ITEM)
    primary.execute(
        "UPDATE item SET note = 'while it heals' WHERE id IN (1, 3)", "INSERT INTO item VALUES (4, 'later', 'x')"
    )
    wait_quarantined(node, 0)
    cluster.wait_equal()
    assert len(node.rows("SELECT id FROM item")) == 7
    wait_told(lambda: node.status()["reason"] is None, node.status, 20)


@pytest.mark.parametrize(("database_kind", "tables"), [("sqlite", "*\n")], ids=["sqlite"])
def test_a_table_that_a_glob_would_list_and_that_is_not_here_is_not_told_as_unlisted(cluster: Cluster) -> None:
    """TRAPS 29: the reason has to lead to the remedy, which is to make the table."""
    cluster.nodes["st2"].execute("DROP TABLE item")
    one_by_one(cluster, IN_ORDER[0])
    wait_told(lambda: listed(cluster.nodes["st2"])[0]["attempts"] > 1, lambda: "tried again", 20)
    for entry in listed(cluster.nodes["st2"]):
        assert re.search("exist|no such table", entry["reason"]), entry["reason"]


def with_a_new_column(cluster: Cluster) -> None:
    """The primary's table has a column that the secondary's is to get later, and rows on both."""
    one_by_one(cluster, "INSERT INTO item (id, name, note) VALUES (11, 'k', 'x'), (12, 'l', 'x'), (13, 'm', 'x')")
    cluster.primary.execute(NEW_COLUMN)
    done = cluster.primary.command("install")
    assert done.returncode == 0, done.stderr


def test_a_column_that_is_added_by_hand_takes_what_waited_for_it(cluster: Cluster) -> None:
    """TRAPS 6, 29: the primary has it first, as when nodes are upgraded in turn; rows that were there before, too."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    with_a_new_column(cluster)
    one_by_one(
        cluster,
        "UPDATE item SET extra = 'e', name = 'was k' WHERE id = 11",
        "UPDATE item SET name = 'k', extra = 'f' WHERE id = 12",
        "UPDATE item SET id = 14 WHERE id = 13",
        "DELETE FROM item WHERE id = 14",
        *IN_ORDER[:6],
    )
    told_everywhere(cluster, "item", "extra")
    primary.execute(*IN_ORDER[6:], "UPDATE item SET extra = 'g' WHERE id = 1")
    wait_arrived(cluster)
    node.execute(NEW_COLUMN)
    primary.execute("UPDATE item SET extra = 'while it heals' WHERE id IN (1, 11)")
    wait_quarantined(node, 0)
    cluster.wait_equal()
    assert node.rows("SELECT extra FROM item WHERE id IN (11, 12) ORDER BY id") == [("while it heals",), ("f",)]
    wait_told(lambda: node.status()["reason"] is None, node.status, 20)


def test_a_column_that_is_added_helps_though_another_table_is_still_missing(cluster: Cluster) -> None:
    """TRAPS 29: each waits for what it depends on, and for nothing else."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    with_a_new_column(cluster)
    node.execute("DROP TABLE other")
    primary.execute("UPDATE item SET extra = 'e' WHERE id = 11", "INSERT INTO other VALUES (1, 'one')")
    wait_quarantined(node, 2)
    node.execute(NEW_COLUMN)
    (entry,) = wait_quarantined(node, 1)
    assert entry["table"] == "other"
    assert node.rows("SELECT extra FROM item WHERE id = 11") == [("e",)]
    node.execute(SCHEMA[1])
    wait_quarantined(node, 0)
    cluster.wait_equal()


def test_rows_that_exchanged_a_unique_value_while_they_waited_heal(cluster: Cluster) -> None:
    """TRAPS 27, 29: legal step by step; of each row the last state alone would be refused for the other's sake, for ever."""
    node = cluster.nodes["st2"]
    with_a_new_column(cluster)
    one_by_one(
        cluster,
        "UPDATE item SET name = 'aside', extra = '1' WHERE id = 11",
        "UPDATE item SET name = 'k', extra = '2' WHERE id = 12",
        "UPDATE item SET name = 'l', extra = '3' WHERE id = 11",
    )
    assert listed(node)
    node.execute(NEW_COLUMN)
    wait_quarantined(node, 0)
    cluster.wait_equal()


def anew(columns: str) -> tuple[str, ...]:
    """SQLite's way to alter a constraint."""
    create = f"CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40) UNIQUE, {columns})"
    return "ALTER TABLE item RENAME TO former", create, "INSERT INTO item SELECT * FROM former", "DROP TABLE former"


PLAIN = anew("note VARCHAR(40)")
CHECK = "ALTER TABLE item ADD CONSTRAINT short_note CHECK (length(note) < 5)"
DROP_CHECK = ("ALTER TABLE item DROP CONSTRAINT short_note",)
CONSTRAINTS = {
    ("check", "sqlite"): (anew("note VARCHAR(40) CONSTRAINT short_note CHECK (length(note) < 5)"), PLAIN),
    ("check", "postgresql"): ((CHECK,), DROP_CHECK),
    ("check", "mariadb"): ((CHECK,), DROP_CHECK),
    ("not null", "sqlite"): (anew("note VARCHAR(40) NOT NULL"), PLAIN),
    ("not null", "postgresql"): (
        ("ALTER TABLE item ALTER COLUMN note SET NOT NULL",),
        ("ALTER TABLE item ALTER COLUMN note DROP NOT NULL",),
    ),
    ("not null", "mariadb"): (
        ("ALTER TABLE item MODIFY note VARCHAR(40) NOT NULL",),
        ("ALTER TABLE item MODIFY note VARCHAR(40)",),
    ),
}


@pytest.mark.parametrize("settings", [WHEN_ASKED], ids=["when asked"])
@pytest.mark.parametrize(
    ("constraint", "unfit", "words"),
    [("check", "'too long'", ("short_note",)), ("not null", "NULL", ("note", "null"))],
    ids=["check", "not null"],
)
def test_a_constraint_that_only_the_secondary_has_holds_up_what_breaks_it_alone(
    cluster: Cluster, database_kind: str, constraint: str, unfit: str, words: tuple[str, ...]
) -> None:
    """TRAPS 29: quarantined with a reason that names it; `retry` applies it when the constraint is gone, and not before."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    add, drop = CONSTRAINTS[constraint, database_kind]
    one_by_one(cluster, "INSERT INTO item VALUES (1, 'one', 'fits'), (2, 'two', 'fits')")
    node.execute(*add)
    primary.execute(
        f"INSERT INTO item VALUES (3, 'three', 'fits'), (4, 'four', {unfit}), (5, 'five', 'fits')",
        f"UPDATE item SET note = {unfit} WHERE id = 1",
        "UPDATE item SET note = 'new' WHERE id = 2",
    )
    entries = wait_quarantined(node, 2)
    assert {(entry["kind"], str(*entry["key"])) for entry in entries} == {("insert", "4"), ("update", "1")}
    assert "too long" not in str(entries), "a reason shows no values"
    told_everywhere(cluster, *words)
    kept = [(1, "fits"), (2, "new"), (3, "fits"), (5, "fits")]
    assert node.rows("SELECT id, note FROM item ORDER BY id") == kept
    assert node.command("quarantine", "retry").returncode == 1
    assert len(listed(node)) == 2
    assert node.rows("SELECT id, note FROM item ORDER BY id") == kept
    node.execute(*drop)
    again = node.command("quarantine", "retry")
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith(" applied, 0 still cannot be applied\n"), (
        "the service may have tried one of them by itself before"
    )
    assert listed(node) == []
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_a_wrong_name_of_the_database(new_cluster: MakeCluster, database_kind: str) -> None:
    """STYLE 10: exit 2, one sentence with place and remedy; also where MariaDB only says that the user may not."""
    node = new_cluster(database_kind, broker_url=NO_BROKER, nodes=("st1",)).primary
    ((password, name),) = re.findall(r":([^:@/]+)@[^/]+/(\w+)", node.url)
    for wrong in ("stsync_nosuch", "nosuch"):
        change(node, f"/{name}", f"/{wrong}")
        for command in (["run"], ["status"], ["install"], ["uninstall"], ["quarantine", "list"], ["quarantine", "retry"]):
            told = expect(node.command(*command), 2, "127.0.0.1:", f"/{wrong}: ", secrets=(password,))
            assert told.endswith("check user, password and name in database.url")
        name = wrong


MANY = 2_500  # more than an outbox row holds
UNIQUE = "CREATE TABLE t (id BIGINT PRIMARY KEY, v BIGINT NOT NULL UNIQUE DEFERRABLE INITIALLY {}, turn INT)"
EXCHANGES = {
    "two rows": ("UPDATE t SET v = 2 WHERE id = 1", "UPDATE t SET v = 1 WHERE id = 2"),
    "two rows in one statement": ("UPDATE t SET v = 3 - v WHERE id < 3",),
    "two rows, and back, and again": tuple(
        f"UPDATE t SET v = {(row + turn) % 2 + 1}, turn = {turn} WHERE id = {row}" for turn in (1, 0, 1) for row in (1, 2)
    ),
    "all rows in a circle": (f"UPDATE t SET v = v % {MANY} + 1",),
    "all rows backwards": (f"UPDATE t SET v = {MANY} + 1 - v",),
    "many statements": tuple(f"UPDATE t SET v = {row % 60 + 1} WHERE id = {row}" for row in range(1, 61)),
    "a new row before the old one goes": (f"INSERT INTO t VALUES ({MANY + 1}, 7, 0)", "DELETE FROM t WHERE id = 7"),
    "with a key": ("UPDATE t SET id = 9001, v = 2 WHERE id = 1", "UPDATE t SET id = 1, v = 1 WHERE id = 2"),
}


@pytest.fixture
def deferrable(tmp_path: Path, new_database: NewDatabase, initially: str) -> Iterator[Pipeline]:
    """Primary and secondary with the same deferrable unique constraint, and rows."""
    schema = (UNIQUE.format(initially),)
    made = Pipeline(
        make_cluster(
            tmp_path / "c", "postgresql", NO_BROKER, new_database, schema=schema, tables="t\n", nodes=("st1", "st2")
        )
    )
    made.primary.execute(f"INSERT INTO t SELECT n, n, 0 FROM generate_series(1, {MANY}) n")
    made.move()
    yield made
    made.close()


@pytest.mark.parametrize("initially", ["DEFERRED", "IMMEDIATE"])
def test_unique_values_that_are_exchanged_under_a_deferrable_constraint(
    deferrable: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 27, 29: what holds at the writer's commit holds at ours; nothing waits, of one change set or several at once."""
    for bytes_ in (replay.FAST_BYTES, 0):
        monkeypatch.setattr(replay, "FAST_BYTES", bytes_)
        for name, statements in EXCHANGES.items():
            deferrable.primary.execute("SET CONSTRAINTS ALL DEFERRED", *statements)
            if name.startswith("all"):
                deferrable.primary.execute("SET CONSTRAINTS ALL DEFERRED", *statements)
            deferrable.move()
            assert deferrable.wrong() == [], name
            deferrable.primary.execute("DELETE FROM t", f"INSERT INTO t SELECT n, n, 0 FROM generate_series(1, {MANY}) n")
            deferrable.move()
    assert deferrable.wrong() == []


@pytest.mark.parametrize("initially", ["DEFERRED"])
def test_an_exchange_of_which_the_secondary_refused_a_half_heals(deferrable: Pipeline) -> None:
    """TRAPS 27, 29: then both rows wait, and neither can go without the other."""
    primary, secondary = deferrable.primary, deferrable.secondary
    secondary.execute("ALTER TABLE t ADD CONSTRAINT calm CHECK (turn = 0)")
    primary.execute("UPDATE t SET v = 2, turn = 1 WHERE id = 1", "UPDATE t SET v = 1 WHERE id = 2")
    primary.execute("UPDATE t SET turn = 0 WHERE id > 5")
    deferrable.move()
    reasons = [str(reason) for (reason,) in secondary.rows("SELECT reason FROM stsync_quarantine ORDER BY id")]
    assert len(reasons) == 2, reasons
    assert "calm" in reasons[0]
    assert "unique" in reasons[1]
    secondary.execute("ALTER TABLE t DROP CONSTRAINT calm", "UPDATE stsync_quarantine SET requested = 1")

    def healed() -> bool:
        deferrable.move()
        return not deferrable.wrong()

    wait_told(healed, deferrable.wrong, 10)


UNIT = "CREATE TABLE unit (id BIGINT NOT NULL, name VARCHAR(40), code VARCHAR(40) NOT NULL, PRIMARY KEY (id))"


def unit_anew(old: str, new: str) -> tuple[str, ...]:
    """SQLite's way to alter a column."""
    return "DROP TABLE unit", UNIT.replace(old, new)


ALTERED = {
    ("sqlite", "type"): unit_anew("name VARCHAR(40)", "name BIGINT"),
    ("sqlite", "collation"): unit_anew("name VARCHAR(40)", "name VARCHAR(40) COLLATE NOCASE"),
    ("sqlite", "key"): unit_anew("KEY (id)", "KEY (id, code)"),
    ("postgresql", "type"): ("ALTER TABLE unit ALTER COLUMN name TYPE text",),
    ("postgresql", "collation"): ('ALTER TABLE unit ALTER COLUMN name TYPE varchar(40) COLLATE "C"',),
    ("postgresql", "key"): ("ALTER TABLE unit DROP CONSTRAINT unit_pkey", "ALTER TABLE unit ADD PRIMARY KEY (id, code)"),
    ("mariadb", "type"): ("ALTER TABLE unit MODIFY name TEXT",),
    ("mariadb", "collation"): ("ALTER TABLE unit MODIFY name VARCHAR(40) COLLATE utf8mb4_bin",),
    ("mariadb", "key"): ("ALTER TABLE unit DROP PRIMARY KEY, ADD PRIMARY KEY (id, code)",),
}


@pytest.mark.parametrize(("database_kind", "what"), ALTERED, ids=[" ".join(one) for one in ALTERED])
def test_a_table_that_was_altered_after_install_is_told(new_cluster: MakeCluster, database_kind: str, what: str) -> None:
    """TRAPS 6: `status` names it and the remedy until `install` has run; SQLite's, made anew, perhaps as not captured."""
    node = unit_alone(new_cluster, database_kind, "unit")
    node.execute(*ALTERED[database_kind, what])
    (told,) = node.status()["warnings"]
    for words in ("unit", "stsync install", "a full synchronization is needed"):
        assert words in told
    assert ("the schema of unit changed" in told) is (database_kind != "sqlite" or what != "collation")
    assert node.command("install").returncode == 0
    assert node.faults() == []


@pytest.mark.parametrize("line", ["unit", "u*"], ids=["named", "glob"])
def test_a_listed_table_that_was_dropped_is_told(new_cluster: MakeCluster, database_kind: str, line: str) -> None:
    """TRAPS 6: by `status`, and with the place where the list names it; a glob that meets it no longer forgets nothing."""
    node = unit_alone(new_cluster, database_kind, line)
    node.execute("DROP TABLE unit")
    told = node.status()["warnings"]
    assert any("the schema of unit changed" in one and "a full synchronization is needed" in one for one in told), told
    place = f"{node.home}/conf/sync_tables.conf:1: table unit does not exist"
    assert any(place in one for one in told) is (line == "unit"), told
    if line == "unit":
        expect(node.command("install"), 2, place)
    node.execute(UNIT)
    assert node.command("install").returncode == 0
    assert node.faults() == []


def unit_alone(new_cluster: MakeCluster, kind: str, line: str) -> Node:
    """A node with one table under capture, and no service."""
    found = new_cluster(kind, broker_url=NO_BROKER, nodes=("st1",), schema=(UNIT,), tables=f"{line}\n")
    assert found.primary.faults() == []
    return found.primary
