"""A committed change on the primary arrives on every secondary, once, in order, whole transactions only."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from common.wire import MAGIC
from publisher import capture
from tests.conftest import NewDatabase
from tests.harness import Cluster, Node, transaction, wait_for
from tests.integration.conftest import SCHEMA, MakeCluster


def test_every_kind_of_change_arrives(cluster: Cluster) -> None:
    primary = cluster.primary
    primary.execute(
        "INSERT INTO unit VALUES (1, 'root', NULL)",
        "INSERT INTO unit VALUES (2, 'child', 1)",
        "INSERT INTO account VALUES (10, 'alice', 2, 'it''s \"quoted\" \\ é 😀', 'never')",
        "INSERT INTO login VALUES (10, 'alice', 'x')",
        "INSERT INTO param VALUES ('Http.Port', 'st1', '443', 0)",
        "INSERT INTO audit VALUES (1, 'not listed')",
    )
    cluster.wait_equal()
    primary.execute("UPDATE unit SET name = 'renamed' WHERE id = 2", "UPDATE account SET note = NULL WHERE id = 10")
    primary.execute("DELETE FROM login WHERE account_id = 10")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert node.rows("SELECT name FROM unit WHERE id = 2") == [("renamed",)]
        assert node.rows("SELECT note FROM account") == [(None,)]
        assert node.rows("SELECT * FROM login") == []
        assert node.rows("SELECT * FROM audit") == []


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_a_transaction_that_commits_later_with_lower_ids_is_not_lost(cluster: Cluster) -> None:
    """TRAPS 1. SQLite has one writer at a time: there, transactions cannot overlap."""
    primary = cluster.primary
    with transaction(primary) as early, transaction(primary) as late:
        early.execute(text("INSERT INTO unit VALUES (1, 'early', NULL)"))
        late.execute(text("INSERT INTO unit VALUES (2, 'late', NULL)"))
        late.commit()
        wait_for(
            lambda: all(node.rows("SELECT id FROM unit") == [(2,)] for node in cluster.secondaries),
            "the later id first",
        )
        early.execute(text("INSERT INTO unit VALUES (3, 'child of early', 1)"))
        early.commit()
    cluster.wait_equal()
    assert len(cluster.secondaries[0].rows("SELECT id FROM unit")) == 3


def test_what_is_rolled_back_never_arrives(cluster: Cluster) -> None:
    primary = cluster.primary
    with transaction(primary) as connection:
        connection.execute(text("INSERT INTO unit VALUES (1, 'gone', NULL)"))
        connection.rollback()
    with transaction(primary) as connection:
        connection.execute(text("INSERT INTO unit VALUES (2, 'kept', NULL)"))
        nested = connection.begin_nested()
        connection.execute(text("INSERT INTO unit VALUES (3, 'rolled back to a savepoint', NULL)"))
        nested.rollback()
        connection.commit()
    cluster.wait_equal()
    assert cluster.secondaries[0].rows("SELECT id FROM unit") == [(2,)]


@contextmanager
def watched(node: Node, query: str) -> Iterator[list[tuple[Any, ...]]]:
    """The one row of a query's answer as a program on the node sees it, from before the block on, each time that it changed."""
    seen: list[tuple[Any, ...]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):  # the writer is a thread of this process too and needs the interpreter
            (found,) = node.rows(query)
            if seen[-1:] != [found]:
                seen.append(found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        wait_for(lambda: seen, "a first look")
        yield seen
    finally:
        done.set()
        watcher.join()


def test_a_hundred_thousand_rows_in_one_transaction_appear_at_once(cluster: Cluster) -> None:
    """TRAPS 1: and change at once, and go at once; a mixture would show the least of the old names and the greatest of the new."""
    primary, secondary = cluster.primary, cluster.secondaries[0]
    empty, inserted, renamed = (
        (0, None, None),
        (100_000, "account 0", "account 99999"),
        (100_000, "renamed 0", "renamed 99999"),
    )
    with watched(secondary, "SELECT count(*), min(name), max(name) FROM account") as seen:
        with primary.engine.begin() as connection:
            rows: list[dict[str, Any]] = [{"i": i, "n": f"account {i}"} for i in range(100_000)]
            connection.execute(text("INSERT INTO account (id, name) VALUES (:i, :n)"), rows)
        cluster.wait_equal(120)
        wait_for(lambda: seen[-1] == inserted, "all of them")
        primary.execute("UPDATE account SET name = REPLACE(name, 'account', 'renamed')")
        cluster.wait_equal(120)
        wait_for(lambda: seen[-1] == renamed, "their new names")
        primary.execute("DELETE FROM account")
        cluster.wait_equal(120)
        wait_for(lambda: seen[-1] == empty, "none of them")
    assert seen == [empty, inserted, renamed, empty]
    assert max(map(_peak_kib, (primary, secondary))) * 1024 < 150_000_000


def test_a_transfer_between_tables_is_never_seen_half(cluster: Cluster) -> None:
    """A reader of a secondary sees whole transactions only: the sum over two tables never changes."""
    primary, watched = cluster.primary, cluster.secondaries[0]
    primary.execute("INSERT INTO unit VALUES (1, '500', NULL)", "INSERT INTO param VALUES ('p', 'x', '500', 0)")
    cluster.wait_equal()
    sums: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        query = "SELECT CAST(u.name AS DECIMAL(9)) + CAST(p.val AS DECIMAL(9)) FROM unit u, param p"
        while not done.is_set():
            sums.update(int(row[0]) for row in watched.rows(query))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for amount in range(1, 150):
            primary.execute(f"UPDATE unit SET name = '{500 - amount}'", f"UPDATE param SET val = '{500 + amount}'")
        cluster.wait_equal()
    finally:
        done.set()
        watcher.join()
    assert sums == {1000}


def test_key_updates_carry_the_old_key_and_cascade_once(cluster: Cluster) -> None:
    """TRAPS 2 and 4."""
    primary = cluster.primary
    primary.execute(
        "INSERT INTO account VALUES (1, 'a', NULL, NULL, NULL)",
        "INSERT INTO login VALUES (1, 'one', 'd')",
        "INSERT INTO login VALUES (1, 'two', 'd')",
        "INSERT INTO param VALUES ('p', 'x', 'v', 0)",
    )
    cluster.wait_equal()
    primary.execute("UPDATE account SET id = 7, note = 'moved' WHERE id = 1")
    primary.execute("UPDATE param SET name = 'P', node = 'y' WHERE name = 'p'")
    cluster.wait_equal()
    node = cluster.secondaries[0]
    assert node.rows("SELECT account_id, name FROM login ORDER BY name") == [(7, "one"), (7, "two")]
    primary.execute("DELETE FROM account WHERE id = 7")
    cluster.wait_equal()
    assert node.rows("SELECT * FROM login") == []
    assert node.rows("SELECT name, node FROM param") == [("P", "y")]


def test_excluded_columns_make_no_event_and_are_never_overwritten(cluster: Cluster) -> None:
    """TRAPS 3, 32."""
    primary = cluster.primary
    primary.execute("INSERT INTO account VALUES (1, 'a', NULL, 'n', 'primary login')")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert node.rows("SELECT note, last_login FROM account") == [("n", None)]
        node.execute("UPDATE account SET last_login = 'own login'")
    before = primary.sequence()
    primary.execute("UPDATE account SET last_login = 'primary again'")
    primary.execute("UPDATE account SET note = note")
    primary.execute("UPDATE account SET note = 'changed', last_login = 'third'")
    cluster.wait_equal()
    assert primary.sequence() == before + 1
    for node in cluster.secondaries:
        assert node.rows("SELECT note, last_login FROM account") == [("changed", "own login")]


def test_rows_crossing_the_row_filter_are_deleted_and_inserted(cluster: Cluster) -> None:
    """TRAPS 3, 32: and a secondary's own local rows stay."""
    primary = cluster.primary
    for node in cluster.secondaries:
        node.execute("INSERT INTO param VALUES ('Own.Port', 'here', '1', 1)")
    primary.execute("INSERT INTO param VALUES ('a', 'x', '1', 0)", "INSERT INTO param VALUES ('b', 'x', '2', 1)")
    cluster.wait_equal()
    primary.execute("UPDATE param SET islocal = 1 - islocal")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert set(node.rows("SELECT name FROM param")) == {("Own.Port",), ("b",)}
    primary.execute("UPDATE param SET islocal = 1 - islocal", "UPDATE param SET name = 'c' WHERE name = 'a'")
    primary.execute("DELETE FROM param WHERE name = 'b'")
    cluster.wait_equal()
    for node in cluster.secondaries:
        assert set(node.rows("SELECT name FROM param")) == {("Own.Port",), ("c",)}


def test_a_local_row_is_not_overwritten_by_a_row_of_the_same_key(cluster: Cluster) -> None:
    """TRAPS 32: it is quarantined with its reason."""
    node = cluster.secondaries[0]
    node.execute("INSERT INTO param VALUES ('a', 'x', 'mine', 1)")
    cluster.primary.execute("INSERT INTO param VALUES ('a', 'x', 'theirs', 0)")
    wait_for(lambda: node.command("quarantine", "list").returncode == 1, "a quarantined change")
    assert node.rows("SELECT val FROM param") == [("mine",)]


def test_unique_values_may_be_swapped(cluster: Cluster) -> None:
    """TRAPS 27."""
    primary = cluster.primary
    primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)", "INSERT INTO unit VALUES (2, 'two', NULL)")
    cluster.wait_equal()
    primary.execute(
        "UPDATE unit SET name = 'three' WHERE id = 1",
        "UPDATE unit SET name = 'one' WHERE id = 2",
        "UPDATE unit SET name = 'two' WHERE id = 1",
    )
    primary.execute(
        "DELETE FROM unit WHERE id = 1",
        "INSERT INTO unit VALUES (3, 'two', 2)",
        "INSERT INTO unit VALUES (1, 'new', 3)",
    )
    cluster.wait_equal()
    assert cluster.secondaries[0].command("quarantine", "list").returncode == 0


def test_a_secondary_does_not_capture_what_it_replays(cluster: Cluster) -> None:
    """TRAPS 5."""
    cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()
    node: Node
    for node in cluster.secondaries:
        assert node.rows("SELECT count(*) FROM stsync_outbox") == [(0,)]
    cluster.secondaries[0].execute("UPDATE unit SET name = 'edited here'")
    assert cluster.secondaries[0].rows("SELECT count(*) FROM stsync_outbox") == [(1,)]


def _peak_kib(node: Node) -> int:
    assert node.process is not None
    with Path(f"/proc/{node.process.pid}/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_there_is_one_relay_in_a_cluster(cluster: Cluster, new_database: NewDatabase, tmp_path: Path) -> None:
    """A second primary (a copied machine, say) gets no word in: the lock at the broker is taken, its changes stay with it."""
    cluster.primary.execute("INSERT INTO unit VALUES (1, 'ours', NULL)")
    cluster.wait_equal()
    home = tmp_path / "impostor"
    shutil.copytree(cluster.primary.home, home)
    url = new_database("sqlite")
    config = (
        cluster.primary.config.read_text()
        .replace(cluster.primary.url, url)
        .replace("../pki", str(cluster.primary.home.parent / "pki"))
    )
    impostor = Node("st1", home, url)
    impostor.config.write_text(config.replace(str(cluster.primary.home), str(home)))
    (home / "log").unlink(missing_ok=True)
    impostor.execute(*SCHEMA)
    capture.install(impostor.database, impostor.settings)
    impostor.execute("INSERT INTO unit VALUES (7, 'theirs', NULL)")
    impostor.start()
    try:
        wait_for(lambda: '"state": "locked"' in impostor.log, "the lock to be refused")
        wait_for(lambda: impostor.sequence() == 1, "the impostor's change in its own journal")
        cluster.primary.execute("INSERT INTO unit VALUES (2, 'ours too', NULL)")
        cluster.wait_equal()
        assert cluster.secondaries[0].rows("SELECT id FROM unit ORDER BY id") == [(1,), (2,)]
        assert cluster.nodes["st2"].status()["refused"] == {}
    finally:
        impostor.close()


TEN = [
    "CREATE TABLE t0 (id BIGINT PRIMARY KEY, name VARCHAR(40) NOT NULL UNIQUE, above BIGINT REFERENCES t0 (id))",
    *[
        f"CREATE TABLE t{i} (id BIGINT PRIMARY KEY, name VARCHAR(40) NOT NULL UNIQUE, parent BIGINT NOT NULL,"
        f" FOREIGN KEY (parent) REFERENCES t{i - 1} (id) ON DELETE CASCADE)"
        for i in range(1, 10)
    ],
]
ROOTS = 40


def test_a_transaction_across_ten_tables_with_parents_and_children(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 27; DESIGN §7: each arrives as a whole, whatever order the tables are listed in."""
    listed = "".join(f"t{i}\n" for i in reversed(range(10)))
    cluster = new_cluster(database_kind, schema=TEN, tables=listed)
    cluster.start()
    primary = cluster.primary
    halves: list[tuple[int, ...]] = []
    done = threading.Event()
    readers = [threading.Thread(target=_watch_ten, args=(node, halves, done)) for node in cluster.secondaries]
    for reader in readers:
        reader.start()
    try:
        down = [f"INSERT INTO t{i} VALUES ({{n}}, 'n{{n}}', {{n}})" for i in range(1, 10)]
        root = "INSERT INTO t0 VALUES ({n}, 'n{n}', {above})"
        primary.execute(
            *[one.format(n=n, above=n - 1 if n > 1 else "NULL") for n in range(1, ROOTS + 1) for one in (root, *down)]
        )
        cluster.wait_equal()
        primary.execute(
            *[f"UPDATE t{i} SET name = 'moved' WHERE id = 1" for i in range(10)],
            *[f"UPDATE t{i} SET name = 'n1' WHERE id = 2" for i in range(10)],
            *[f"UPDATE t{i} SET parent = 3 WHERE id = 4" for i in range(1, 10)],
            "UPDATE t0 SET above = NULL WHERE above > 20",
            "DELETE FROM t0 WHERE id > 30",
            *[one.format(n=n, above=n - 30) for n in range(31, 36) for one in (root, *down)],
            *[one.format(n=n, above=2) for n in range(101, 101 + ROOTS) for one in (root, *down)],
        )
        cluster.wait_equal()
        primary.execute("DELETE FROM t1", "UPDATE t0 SET above = NULL", "DELETE FROM t0 WHERE id <> 5")
        cluster.wait_equal()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert halves == []
    assert [node.rows("SELECT id FROM t0") for node in cluster.secondaries] == [[(5,)], [(5,)]]
    assert all(node.command("quarantine", "list").returncode == 0 for node in cluster.secondaries)


def _watch_ten(node: Node, halves: list[tuple[int, ...]], done: threading.Event) -> None:
    """Rows where the ten tables do not hold equally many, but for the last state, which leaves the root alone."""
    counts = ", ".join(f"(SELECT count(*) FROM t{i})" for i in range(10))
    while not done.wait(0.002):
        ((first, *others),) = node.rows(f"SELECT {counts}")
        if others != [first] * 9 and (first, *others) != (1, *[0] * 9):
            halves.append((first, *others))


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_services_start_while_a_program_holds_the_write_lock(new_cluster: MakeCluster, database_kind: str) -> None:
    """DESIGN §10: on SQLite a long transaction of another program makes ours wait, and nothing else."""
    found = new_cluster(database_kind)
    with transaction(found.primary) as import_, transaction(found.secondaries[0]) as other:
        import_.execute(text("INSERT INTO unit VALUES (1, 'one', NULL)"))
        other.execute(text("INSERT INTO audit VALUES (1, 'a program of this node')"))
        found.start()
        for node in found.nodes.values():
            wait_for(lambda node=node: '"state": "ready"' in node.log, f"{node.name} to reach the broker", 20)  # type: ignore[misc]
        import_.commit()
        other.commit()
    found.wait_equal()
    assert found.secondaries[0].rows("SELECT id FROM unit") == [(1,)]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_primary_is_heard_while_a_program_holds_the_write_lock(cluster: Cluster) -> None:
    """TRAPS 9; SQLite has one writer at a time."""
    watched = cluster.secondaries[0]

    def heard() -> int:
        return int(watched.rows("SELECT heard_number FROM stsync_node")[0][0])

    cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()
    wait_for(lambda: cluster.primary.rows("SELECT name FROM stsync_reports"), "reports, for which the primary writes too")
    with transaction(cluster.primary) as import_:
        import_.execute(text("INSERT INTO unit VALUES (2, 'two', NULL)"))
        before = heard()
        wait_for(lambda: heard() >= before + 5, "five heartbeats", 15)
        import_.commit()
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_data_key_rotates_while_the_cluster_works(new_cluster: MakeCluster, database_kind: str) -> None:
    """Bodies sealed under each of several keys arrive, live and from the journal."""
    found = new_cluster(database_kind, settings=f"data_key_hours = {0.2 / 3600}")
    late = found.nodes["st3"]
    for node in (found.primary, found.nodes["st2"]):
        node.start()
    keys: set[bytes] = set()

    def rotated() -> bool:
        found.primary.execute("DELETE FROM unit", f"INSERT INTO unit VALUES ({found.primary.sequence() + 1}, 'next', NULL)")
        for (message,) in found.primary.rows("SELECT message FROM stsync_journal"):
            keys.add(_wrapped_key(message))
        return len(keys) > 3

    wait_for(rotated, "more than three data keys")
    late.start()
    found.wait_equal()
    assert found.primary.status()["refused"] == {}
    assert [node.status()["refused"] for node in found.secondaries] == [{}, {}]


def _wrapped_key(message: bytes) -> bytes:
    """The data key of a message as it travels, wrapped to the cluster certificate (common.wire, common.trust.sealing)."""
    rest = message[len(MAGIC) :]
    for _ in ("certificates", "signature", "header"):
        rest = rest[4 + int.from_bytes(rest[:4], "big") :]
    return rest[3 : 3 + int.from_bytes(rest[1:3], "big")]
