"""The world breaks around a full synchronization that is under way: the broker, a network, a disk, a database, a backup put back.

Whatever it is, nobody stays paused, a node is as it was or as the primary, the log goes on, and in the end all are equal."""

import json
import random
import resource
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from common.session import Phase
from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from tests.bench.figures import peak_mb
from tests.conftest import NewDatabase
from tests.faults.conftest import frozen, mostly, wait_running, wait_told
from tests.faults.test_broker_loss import started
from tests.faults.test_outages import between
from tests.faults.test_rejoin import meet, sessions_of, settled, told
from tests.faults.test_restored import back_up, restore
from tests.faults.test_session_crashes import Command
from tests.harness import Cluster, Node, make_cluster, transaction
from tests.integration.conftest import SCHEMA, TABLES, MakeCluster
from tests.integration.test_sync import fill, of, run, spoil
from tests.workload import more, writing

SETTINGS = """
[sessions]
rejoin_pause_s = 0.5
verify_every_s = 1e9
verify_at_once = false
silent_s = {silent_s}
chunk_bytes = {chunk_bytes}
[intervals]
heartbeat_s = 0.5
"""
PATIENT_S, IMPATIENT_S = 60.0, 3.0
BULK, BULK_BYTES = 100, 200_000  # less than what the primary sends ahead of the slowest node, and more than arrives at once
ROOM_BYTES = 1 << 20
NO_ROOM, THEIR_ROOM = "this node's disk: File too large", "the primary's disk: File too large"
MOST_MB = {
    "sqlite": 270.0,
    "postgresql": 200.0,
    "mariadb": 200.0,
}  # SQLite works in the process itself, with copies of a value


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this module's own, which may be stopped."""
    with PrivateRabbitMQ(servers_root / "rabbitmq-sessions", fast=True) as server:
        yield server


def bulk_on(node: Node, count: int, size: int) -> None:
    """Rows that the log has never seen, more than fit into a few messages."""
    chance = random.Random(1)
    with node.engine.begin() as connection:
        for number in range(count):
            body = b64encode(chance.randbytes(size * 3 // 4)).decode()
            connection.execute(text("INSERT INTO bulk VALUES (:n, :b)"), {"n": number, "b": body})
        connection.execute(text("DELETE FROM stsync_outbox"))


def options(kind: str, silent_s: float = PATIENT_S, chunk_bytes: int = 448 * 1024) -> dict[str, Any]:
    """What a cluster is made with: one table more than the others have, and nodes that rejoin soon."""
    body = "LONGTEXT" if kind == "mariadb" else "TEXT"
    return {
        "schema": (*SCHEMA, f"CREATE TABLE bulk (id BIGINT PRIMARY KEY, body {body} NOT NULL)"),
        "tables": TABLES + "bulk\n",
        "settings": SETTINGS.format(silent_s=silent_s, chunk_bytes=chunk_bytes),
    }


def spoiled(cluster: Cluster, count: int = BULK, size: int = BULK_BYTES) -> Cluster:
    """Every secondary was equal once, and is not any more: in rows of all sorts, and it lacks a table."""
    fill(cluster)
    bulk_on(cluster.primary, count, size)
    for number, node in enumerate(cluster.secondaries):
        spoil(node, number)
    return cluster


def kept(node: Node) -> int:
    """How many bytes of a session are on the node's disk: in a file without a name that its service has open."""
    assert node.process is not None
    folder = Path(f"/proc/{node.process.pid}/fd")
    found = 0
    for one in folder.iterdir():
        try:
            if one.readlink().name.startswith(("#", "stsync-session-")):
                found += one.stat().st_size
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def wait_chunks(node: Node) -> None:
    wait_told(lambda: kept(node) > 0, lambda: f"chunks on {node.name}\n{node.log[-3000:]}")


def phase(cluster: Cluster) -> Phase:
    """How far the newest session is."""
    return Phase(cluster.primary.rows("SELECT phase FROM stsync_sessions ORDER BY id DESC LIMIT 1")[0][0])


def document(command: Command) -> dict[str, Any]:
    """What the command told in the end."""
    command.join()
    assert command.done is not None
    assert command.done.stdout, command.done.stderr
    found: dict[str, Any] = json.loads(command.done.stdout)
    return found


def assert_told(found: dict[str, Any]) -> None:
    """A session that is over, and where it was not done the reason."""
    assert Phase(found["phase"]).over, found
    for one in found["nodes"]:
        assert one["result"] == "done" or one["reason"], found


def goes_on(node: Node) -> bool:
    return node.status()["state"] not in ("paused", "synchronizing")


def assert_becomes_equal(cluster: Cluster) -> None:
    """By itself; then the log leads on from there."""
    wait_told(lambda: settled(cluster) and not cluster.differences(), lambda: told(cluster), 90)
    cluster.primary.execute("UPDATE account SET note = 'after' WHERE id % 7 = 1")
    cluster.wait_equal()
    for node in cluster.nodes.values():
        assert node.process is not None
        assert node.process.poll() is None, node.log[-3000:]
        assert node.rows("SELECT 1 FROM stsync_quarantine") == []


@mostly("sqlite")
def test_a_broker_that_dies_in_the_middle_costs_a_patient_session_nothing(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str
) -> None:
    """TRAPS 8, 34: what was on its way is asked for again, and what writers do meanwhile arrives behind it."""
    cluster = spoiled(started_and_met(new_cluster(database_kind, broker_url=broker.new_vhost(), **options(database_kind))))
    with writing(cluster.primary, 3, 10, pace_s=1.0) as writers:
        command = Command(cluster.primary)
        wait_chunks(cluster.nodes["st2"])
        with frozen_service(cluster.nodes["st2"]):  # most of it is in the broker, or on its way
            wait_told(lambda: kept(cluster.primary) > BULK * BULK_BYTES * 0.7, lambda: told(cluster))
            broker.kill()
            assert not phase(cluster).over
        more(writers, 8)
        broker.start()
        found = document(command)
    assert [one["result"] for one in found["nodes"]] == ["done", "done"], found
    assert_becomes_equal(cluster)


@mostly("postgresql")
def test_a_broker_that_stays_away_keeps_nobody_paused(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str
) -> None:
    """TRAPS 11, 34: the session ends while it is away, with a reason; all rejoin when it is back, writers having gone on."""
    cluster = spoiled(
        started_and_met(new_cluster(database_kind, broker_url=broker.new_vhost(), **options(database_kind, IMPATIENT_S)))
    )
    with writing(cluster.primary, 4, 10, pace_s=1.0) as writers:
        command = Command(cluster.primary)
        wait_chunks(cluster.nodes["st2"])
        with frozen_service(cluster.nodes["st2"]):
            broker.kill()
            assert not phase(cluster).over
        try:
            found = document(command)
            wait_told(lambda: all(map(goes_on, cluster.secondaries)), lambda: told(cluster))
            more(writers, 8)
        finally:
            broker.start()
    assert_told(found)
    assert {one["result"] for one in found["nodes"]} <= {"failed", "unreachable"}, found
    assert_becomes_equal(cluster)


@mostly("sqlite")
def test_connections_that_are_cut_again_and_again_hinder_no_session(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str
) -> None:
    """TRAPS 8, 22: those of one secondary, each time something more of the session has come."""
    with between(vhost_url) as (proxy, url):
        cluster = new_cluster(database_kind, broker_url=vhost_url, **options(database_kind, 15.0))
        victim = cluster.nodes["st2"]
        victim.config.write_text(victim.config.read_text().replace(vhost_url, url))
        spoiled(started_and_met(cluster))
        command = Command(cluster.primary)
        cuts = has = 0
        while command.is_alive() and cuts < 5:
            if (now := kept(victim)) > has:
                has = now
                proxy.cut()
                cuts += 1
        assert cuts >= 3, "the session was over before"
        found = document(command)
        assert_told(found)
        assert of(found, "st3")["result"] == "done", found
        assert_becomes_equal(cluster)


@contextmanager
def full_disk(node: Node, room: int = ROOM_BYTES) -> Iterator[None]:
    """No file of the node's service may grow beyond its first so many bytes."""
    assert node.process is not None
    _, hard = resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def logs_on(cluster: Cluster, number: int) -> None:
    """A change reaches everybody."""
    cluster.primary.execute(f"INSERT INTO unit (id, name) VALUES ({number}, 'later {number}')")
    for node in cluster.secondaries:
        wait_told(
            lambda node=node: node.rows(f"SELECT 1 FROM unit WHERE id = {number}"),  # type: ignore[misc]
            lambda: told(cluster),
        )


def rows_of(node: Node) -> dict[str, list[tuple[Any, ...]]]:
    """What stands on a node at one moment."""
    found = {}
    with node.engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            connection.execution_options(isolation_level="REPEATABLE READ")
        for table in ("unit", "account", "login", "param", "bulk"):
            columns = "id, length(body)" if table == "bulk" else "*"
            found[table] = sorted(map(tuple, connection.execute(text(f"SELECT {columns} FROM {table}"))), key=repr)
    return found


@mostly("postgresql")
@pytest.mark.parametrize("rows", ["large", "small"])
def test_a_secondary_without_room_for_the_chunks_is_left_as_it_was_and_says_so(
    new_cluster: MakeCluster, database_kind: str, rows: str
) -> None:
    """TRAPS 29: the others complete, and it becomes equal by itself once there is room. What is small stands in the file's buffer
    still when there is no room for it."""
    count, size, chunk_bytes, room = {
        "large": (BULK, BULK_BYTES, 448 * 1024, ROOM_BYTES),
        "small": (2_000, 1000, 1024, 1 << 20),  # more than the files of a small SQLite database, which stand under it too
    }[rows]
    cluster = started_and_met(new_cluster(database_kind, **options(database_kind, chunk_bytes=chunk_bytes)))
    spoiled(cluster, count, size)
    victim, other = cluster.nodes["st2"], cluster.nodes["st3"]
    before = rows_of(victim)
    with full_disk(victim, room):
        code, found = run(cluster.primary, "sync")
        assert code == 1, found
        assert of(found, "st2")["result"] == "failed", found
        assert NO_ROOM in of(found, "st2")["reason"], found
        assert of(found, "st3")["result"] == "done", found
        assert rows_of(victim) == before
        assert not any(other.name in one for one in cluster.differences())
        logs_on(cluster, 5000)
    assert_becomes_equal(cluster)


@mostly("postgresql")
def test_a_primary_without_room_for_the_chunks_says_so_and_everybody_goes_on(
    new_cluster: MakeCluster, database_kind: str
) -> None:
    """TRAPS 29: nothing is changed anywhere; when there is room, all become equal by themselves."""
    cluster = spoiled(started_and_met(new_cluster(database_kind, **options(database_kind))))
    before = [rows_of(node) for node in cluster.secondaries]
    with full_disk(cluster.primary):
        code, found = run(cluster.primary, "sync")
        assert code == 1, found
        assert_told(found)
        assert (found["phase"], found["reason"]) == ("failed", NO_ROOM), found
        assert [one["result"] for one in found["nodes"]] == ["failed", "failed"], found
        assert all(THEIR_ROOM in one["reason"] for one in found["nodes"]), found
        assert [rows_of(node) for node in cluster.secondaries] == before
        logs_on(cluster, 5000)
    assert_becomes_equal(cluster)


@pytest.fixture
def apart(
    tmp_path: Path, servers_root: Path, vhost_url: str, new_database: NewDatabase, database_kind: str
) -> Iterator[tuple[Cluster, PrivatePostgreSQL | PrivateMariaDB]]:
    """A cluster of two, the secondary on a server of its own."""
    folder = servers_root / f"{database_kind}-apart"
    with (
        PrivatePostgreSQL(folder, fast=True)
        if database_kind == "postgresql"
        else PrivateMariaDB(folder, fast=True) as server
    ):
        urls = iter([new_database(database_kind), server.new_database()])
        wanted = options(database_kind)
        cluster = make_cluster(
            tmp_path / "c", database_kind, vhost_url, lambda _kind: next(urls), nodes=("st1", "st2"), **wanted
        )
        yield cluster, server
        for node in cluster.nodes.values():
            node.close()


@pytest.mark.parametrize("database_kind", ["mariadb", pytest.param("postgresql", marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["killed", pytest.param("stopped", marks=pytest.mark.long)])
def test_a_database_that_goes_while_it_is_installed_has_all_of_it_or_nothing(
    apart: tuple[Cluster, PrivatePostgreSQL | PrivateMariaDB], how: str, database_kind: str
) -> None:
    """TRAPS 7: at each look the secondary is as it was or as the primary, and in the end as the primary."""
    cluster, server = apart
    victim = cluster.nodes["st2"]
    spoiled(started_and_met(cluster))
    before, after = rows_of(victim), rows_of(cluster.primary)
    own = own_of(before)
    with transaction(victim) as holder:
        holder.execute(text("UPDATE unit SET parent = 3 WHERE id = 900"))  # what the installation needs
        command = Command(cluster.primary)
        wait_told(lambda: phase(cluster) is Phase.INSTALLING and kept(victim), lambda: told(cluster))
        server.kill() if how == "killed" else server.stop()
        with pytest.raises(DBAPIError):
            holder.execute(text("SELECT 1"))
    victim.engine.dispose()
    server.start()
    assert rows_of(victim) == before

    def equal() -> bool:
        found = rows_of(victim)
        assert found == before or (listed(found), own_of(found)) == (listed(after), own), "half of it"
        return settled(cluster) and not cluster.differences()

    wait_told(equal, lambda: told(cluster))
    assert_told(document(command))
    assert_becomes_equal(cluster)


def listed(rows: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """What is synchronized: without the excluded column and the rows outside the filter."""
    return rows | {"account": [one[:4] for one in rows["account"]], "param": [one for one in rows["param"] if not one[3]]}


def own_of(rows: dict[str, list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """Rows outside the filter."""
    return [one for one in rows["param"] if one[3]]


def test_a_secondary_whose_older_copy_is_put_back_in_the_middle_rejoins(new_cluster: MakeCluster, tmp_path: Path) -> None:
    """TRAPS 7, 12: a copy from before it lacked anything."""
    cluster = started_and_met(new_cluster("sqlite", **options("sqlite")))
    victim = cluster.nodes["st2"]
    back_up(victim, tmp_path / "backup.db")
    spoiled(cluster)
    command = Command(cluster.primary)
    wait_chunks(victim)
    victim.kill()
    restore(victim, tmp_path / "backup.db")
    victim.start()
    found = document(command)
    assert_told(found)
    assert of(found, "st3")["result"] == "done", found
    assert_becomes_equal(cluster)


def test_a_secondary_whose_older_copy_is_put_back_right_after_rejoins(new_cluster: MakeCluster, tmp_path: Path) -> None:
    """TRAPS 6, 7: what the full synchronization had brought is in no log that it could catch up from."""
    cluster = started_and_met(new_cluster("sqlite", **options("sqlite")))
    victim = cluster.nodes["st2"]
    back_up(victim, tmp_path / "backup.db")
    fill(cluster)
    bulk_on(cluster.primary, 20, 1000)
    code, found = run(cluster.primary, "sync")
    assert code == 0, found
    assert victim.stop() == 0
    restore(victim, tmp_path / "backup.db")
    assert cluster.differences()
    victim.start()
    wait_told(lambda: sessions_of(cluster.primary)[-1] == ("sync", "rejoin", "resumed"), lambda: told(cluster))
    assert_becomes_equal(cluster)


def started_and_met(cluster: Cluster) -> Cluster:
    started(cluster)
    meet(cluster)
    return cluster


@contextmanager
def frozen_service(node: Node) -> Iterator[None]:
    assert node.process is not None
    with frozen(node.process):
        yield


KEYS = {
    "sqlite": ("TEXT", "BLOB", "TEXT COLLATE NOCASE", "TEXT"),
    "postgresql": ("TEXT", "BYTEA", "CITEXT", "TEXT"),
    "mariadb": ("VARCHAR(80) COLLATE utf8mb4_bin", "VARBINARY(80)", "VARCHAR(80) COLLATE utf8mb4_general_ci", "LONGTEXT"),
}
WIDE = ("INT", "VARCHAR(10)")
MANY, WIDTH, LARGE_BYTES = 300, 200, 10_000_000


def shapes(kind: str) -> dict[str, str]:
    """Tables of every sort, each by its columns."""
    of_text, of_bytes, of_any_case, large = KEYS[kind]
    return {
        "large": f"id BIGINT PRIMARY KEY, v {large}",
        "single": "id BIGINT PRIMARY KEY, v INT",
        "empty": "id BIGINT PRIMARY KEY, v INT",
        "wide": f"id BIGINT PRIMARY KEY, {', '.join(f'c{one} {WIDE[one % 2]}' for one in range(WIDTH))}",
        "composite": "a BIGINT, b VARCHAR(40), v INT, PRIMARY KEY (b, a)",
        "texts": f"k {of_text} NOT NULL PRIMARY KEY, v INT",
        "bytes": f"k {of_bytes} NOT NULL PRIMARY KEY, v INT",
        "cases": f"k {of_any_case} NOT NULL PRIMARY KEY, v INT",
    }


def rows_for(kind: str) -> dict[str, Sequence[str]]:
    """Rows of each, as SQL has them, without the large ones."""
    some = range(MANY)
    open_, close = ("'\\x", "'") if kind == "postgresql" else ("X'", "'")
    return {
        "single": ["1, 1"],
        "wide": [f"{i}, {', '.join(repr(f'{i} {one}') if one % 2 else str(i + one) for one in range(WIDTH))}" for i in some],
        "composite": [f"{i % 17}, 'b{i}', {i}" for i in some],
        "texts": [f"'k{i} ä€', {i}" for i in some],
        "bytes": [f"{open_}00ff{i:04x}5c27{close}, {i}" for i in some],
        "cases": [f"'Key{i}', {i}" for i in some],
    }


def fill_all(node: Node, kind: str) -> None:
    """As rows that stood there before `install`."""
    chance = random.Random(2)
    with node.engine.begin() as connection:
        for name, rows in rows_for(kind).items():
            for one in rows:
                connection.exec_driver_sql(f"INSERT INTO {name} VALUES ({one})")
        for number in range(3):
            body = chance.randbytes(LARGE_BYTES // 2).hex()
            connection.execute(text("INSERT INTO large VALUES (:n, :b)"), {"n": number, "b": body})
        connection.execute(text("DELETE FROM stsync_outbox"))


def test_tables_of_every_sort_are_equal_after_one_session_in_little_memory(
    new_cluster: MakeCluster, database_kind: str
) -> None:
    """TRAPS 28, 30: values of ten megabytes, rows of two hundred columns, keys of every sort; to a node that has nothing, and to one
    that has something else."""
    tables = shapes(database_kind)
    schema = [f"CREATE TABLE {name} ({columns})" for name, columns in tables.items()]
    if database_kind == "postgresql":
        schema.insert(0, "CREATE EXTENSION citext")
    cluster = new_cluster(database_kind, schema=schema, tables="".join(f"{name}\n" for name in tables))
    for name in ("st1", "st3"):
        fill_all(cluster.nodes[name], database_kind)
    cluster.nodes["st3"].execute(
        "UPDATE large SET v = 'small' WHERE id = 0",
        "DELETE FROM large WHERE id = 2",
        "INSERT INTO empty VALUES (1, 1)",
        "UPDATE single SET v = 2",
        "UPDATE wide SET c199 = 'other' WHERE id < 20",
        "DELETE FROM composite WHERE a = 3",
        "UPDATE texts SET k = 'other' WHERE v = 7",
        "DELETE FROM bytes WHERE v < 20",
        "UPDATE cases SET k = lower(k) WHERE v < 50",
    )
    cluster.start(cold=True)
    wait_running(*cluster.nodes.values())
    code, found = run(cluster.primary, "sync")
    assert code == 0, found
    assert [one["result"] for one in found["nodes"]] == ["done", "done"], found
    assert cluster.differences() == []
    assert cluster.nodes["st2"].rows("SELECT length(v) FROM large") == [(LARGE_BYTES,)] * 3
    assert cluster.nodes["st3"].rows("SELECT count(*) FROM cases WHERE k = 'Key7'") == [(1,)]
    peaks = {node.name: peak_mb(node.process.pid) for node in cluster.nodes.values() if node.process is not None}
    assert max(peaks.values()) < MOST_MB[database_kind], peaks
