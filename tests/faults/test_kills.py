"""`kill -9` of anything at any time, during work: afterwards all nodes are equal, without holes, nothing lost."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from deploy.servers.processes import descendants
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_arrived, wait_running, wait_told
from tests.harness import Cluster, Node, make_cluster, wait_for
from tests.integration.conftest import SCHEMA, TABLES, MakeCluster

SEEDS = [1]
LONG_SEEDS = [pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12)]
SETTLE_S = 2.5  # RabbitMQ 3.10 loses a quorum queue that was declared just before a kill (deploy/servers)
Server = PrivatePostgreSQL | PrivateMariaDB


@dataclass
class Writer:
    """A program that changes the primary's tables at random, from a seed, in a thread of its own."""

    node: Node
    seed: int
    stop: threading.Event = field(default_factory=threading.Event)
    committed: int = 0
    failed: int = 0
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self._write()
        except BaseException as exc:
            self.error = exc
            raise

    def _write(self) -> None:
        chance = random.Random(self.seed)
        steps = [self._insert, self._update, self._delete, self._rekey, self._bulk]
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                with self.node.engine.connect() as connection:
                    for step in chance.choices(steps, weights=[5, 6, 2, 2, 1], k=chance.randint(1, 4)):
                        step(connection, chance, number)
                    if chance.random() < 0.1:
                        connection.rollback()
                        continue
                    connection.commit()
                self.committed += 1
            except DBAPIError:  # a duplicate of chance, or the database is killed at the moment
                self.failed += 1
                self.stop.wait(0.01)

    def _insert(self, connection: Connection, chance: random.Random, number: int) -> None:
        key, unit = number * 10 + chance.randint(0, 9), chance.randint(1, 40)
        at = {"k": key, "u": unit, "n": f"n{key}", "t": "x" * chance.randint(0, 3000)}
        if not connection.execute(text("SELECT 1 FROM unit WHERE id = :u"), at).first():
            connection.execute(text("INSERT INTO unit VALUES (:u, :n, NULL)"), at)
        connection.execute(text("INSERT INTO account VALUES (:k, :n, :u, :t, 'now')"), at)
        connection.execute(text("INSERT INTO login VALUES (:k, :n, 'd')"), at)

    def _update(self, connection: Connection, chance: random.Random, number: int) -> None:
        at = {"n": f"u{number}-{chance.random()}", "m": chance.randint(2, 7), "r": chance.randint(0, 1)}
        connection.execute(text("UPDATE account SET note = :n, last_login = :n WHERE id % :m = :r"), at)
        connection.execute(text("UPDATE unit SET name = :n WHERE id = :m"), at)

    def _delete(self, connection: Connection, chance: random.Random, number: int) -> None:
        at = {"m": chance.randint(3, 9), "k": max(0, number - 30) * 10, "o": number}
        connection.execute(text("DELETE FROM login WHERE account_id % :m = 0"), at)
        connection.execute(text("DELETE FROM account WHERE id % :m = 1 AND id > :k"), at)
        connection.execute(text("DELETE FROM param WHERE name = :o"), {"o": f"p{chance.randint(0, 30)}"})

    def _rekey(self, connection: Connection, chance: random.Random, number: int) -> None:
        low = connection.execute(text("SELECT min(id) FROM account WHERE id < 1000000")).scalar()
        if low is not None:
            at = {"k": low, "l": 1_000_000 + number * 10 + chance.randint(0, 9)}
            connection.execute(text("UPDATE account SET id = :l, note = 'moved' WHERE id = :k"), at)

    def _bulk(self, connection: Connection, chance: random.Random, number: int) -> None:
        for one in range(30):
            at = {
                "p": f"p{one}",
                "s": f"s{number}",
                "v": "v" * chance.randint(0, 500),
                "i": chance.randint(0, 1),
            }
            connection.execute(text("INSERT INTO param VALUES (:p, :s, :v, :i)"), at)
        connection.execute(text("UPDATE param SET islocal = 1 - islocal WHERE name = 'p1'"))
        connection.execute(text("DELETE FROM param WHERE name < 'p2' AND node <> :s"), {"s": f"s{number}"})


@contextmanager
def writing(node: Node, seed: int, enough: int = 40) -> Iterator[Writer]:
    """Writes while the block runs, and at least so many transactions before it ends."""
    writer = Writer(node, seed)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
        reached = writer.committed + enough
        wait_told(lambda: writer.committed >= reached or writer.error, lambda: f"{writer}")
    finally:
        writer.stop.set()
        thread.join()
    assert writer.error is None


def pause(chance: random.Random, writer: Writer) -> None:
    """Go on after a few more transactions, a number of chance."""
    reached = writer.committed + chance.randint(1, 40)
    wait_told(lambda: writer.committed >= reached or writer.error, lambda: f"{writer}")


def kill_and_start(node: Node) -> None:
    node.kill()
    node.start()


def assert_whole(cluster: Cluster) -> None:
    cluster.wait_equal(90)
    for node in cluster.nodes.values():
        assert node.rows("SELECT count(*) FROM stsync_quarantine") == [(0,)]
        assert node.process is not None
        assert node.process.poll() is None, node.log[-3000:]
    head = cluster.primary.sequence()
    journal = cluster.primary.rows("SELECT min(sequence), max(sequence), count(*) FROM stsync_journal")
    assert journal == [(1, head, head)]
    hashes = {node.name: bytes(node.rows("SELECT hash FROM stsync_node")[0][0]) for node in cluster.nodes.values()}
    assert len(set(hashes.values())) == 1, hashes


@pytest.mark.parametrize("seed", [*SEEDS, *LONG_SEEDS])
@pytest.mark.parametrize("victim", ["st1", "st2"])
def test_a_killed_service_loses_nothing(cluster: Cluster, victim: str, seed: int) -> None:
    """TRAPS 7, 8, 10, 25: the primary's or a secondary's, three times in a row, at moments of chance."""
    chance = random.Random(seed)
    node = cluster.nodes[victim]
    with writing(cluster.primary, seed) as writer:
        for _ in range(3):
            pause(chance, writer)
            kill_and_start(node)
            if chance.random() < 0.7:
                wait_running(node)
    assert_whole(cluster)


@pytest.mark.parametrize("seed", [1, *LONG_SEEDS])
def test_everything_killed_in_turn_loses_nothing(cluster: Cluster, seed: int) -> None:
    """TRAPS 7, 8: every service, again and again, without waiting for any of them."""
    chance = random.Random(seed + 100)
    with writing(cluster.primary, seed) as writer:
        for _ in range(6):
            pause(chance, writer)
            kill_and_start(chance.choice(list(cluster.nodes.values())))
    assert_whole(cluster)


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this module's own, which may be killed."""
    with PrivateRabbitMQ(servers_root / "rabbitmq-killed", fast=True) as server:
        yield server


def test_a_killed_broker_loses_nothing(new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str) -> None:
    """TRAPS 11, 22, 25: nor stops any service."""
    broker.start()
    cluster = new_cluster(database_kind, broker_url=broker.new_vhost())
    cluster.start()
    wait_running(*cluster.nodes.values())
    declared = time.monotonic()
    with writing(cluster.primary, 7) as writer:
        wait_for(lambda: time.monotonic() - declared > SETTLE_S, "queues that the broker keeps")
        broker.kill()
        committed = writer.committed
        wait_told(lambda: writer.committed > committed + 20, lambda: f"writers are blocked: {writer}", 20)
        broker.start()
    assert_whole(cluster)


def test_a_broker_that_comes_and_goes_raises_no_alarm(new_cluster: MakeCluster, broker: PrivateRabbitMQ) -> None:
    """TRAPS 8, 34: what comes again because of a lost link is no attack, and is not counted as one."""
    broker.start()
    cluster = new_cluster("sqlite", broker_url=broker.new_vhost(), nodes=("st1", "st2"))
    cluster.start()
    wait_running(*cluster.nodes.values())
    declared = time.monotonic()
    with writing(cluster.primary, 8):
        wait_for(lambda: time.monotonic() - declared > SETTLE_S, "queues that the broker keeps")
        broker.kill()
        broker.start()
    assert_whole(cluster)
    assert {node.name: node.status()["refused"] for node in cluster.nodes.values()} == {"st1": {}, "st2": {}}


@pytest.fixture(scope="module")
def killable(servers_root: Path) -> Iterator[Callable[[str], Server]]:
    """Database servers of this module's own, by kind."""
    made: dict[str, Server] = {}

    def get(kind: str) -> Server:
        if kind not in made:
            server = PrivatePostgreSQL if kind == "postgresql" else PrivateMariaDB
            made[kind] = server(servers_root / f"{kind}-killed", fast=True)
        return made[kind].start()

    yield get
    for server in made.values():
        server.close()


OnServer = Callable[[str, str], tuple[Server, Cluster]]


@pytest.fixture
def on_server(
    killable: Callable[[str], Server], new_database: NewDatabase, tmp_path: Path, vhost_url: str
) -> Iterator[OnServer]:
    """Makes a cluster of two, the database of one of whom is on a server that may be killed."""
    with ExitStack() as cleanup:

        def make(kind: str, victim: str) -> tuple[Server, Cluster]:
            server = killable(kind)
            names = ("st1", "st2")
            url = server.new_database("killed")
            cleanup.callback(server.drop_database, url)
            urls = iter([url if name == victim else new_database(kind) for name in names])
            cluster = make_cluster(
                tmp_path / "cluster", kind, vhost_url, lambda _kind: next(urls), schema=SCHEMA, tables=TABLES, nodes=names
            )
            for node in cluster.nodes.values():
                cleanup.callback(node.close)
            return server, cluster

        yield make


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("victim", ["st1", "st2"])
def test_a_killed_database_loses_nothing(on_server: OnServer, database_kind: str, victim: str) -> None:
    """TRAPS 7, 29: under a node; its service goes on by itself, is still the only one, and stops in order."""
    server, cluster = on_server(database_kind, victim)
    node = cluster.nodes[victim]
    cluster.start()
    wait_running(*cluster.nodes.values())
    with writing(cluster.primary, 9) as writer:
        pause(random.Random(9), writer)
        server.kill()
        server.start()
    node.engine.dispose()  # the test's own connections are dead too
    assert_whole(cluster)
    wait_told(lambda: node.status()["service"] == "running", node.status, 10)
    second = node.command("run", timeout_s=20)
    assert second.returncode == 3, second.stderr
    assert [one.stop() for one in cluster.nodes.values()] == [0, 0]
    assert "Traceback" not in node.log


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The whole server says nothing for a while."""
    processes = [server.pid, *descendants(server.pid)]

    def signal_all(number: signal.Signals) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):  # a child whose client is gone ends at once
                os.kill(pid, number)

    try:
        signal_all(signal.SIGSTOP)
        yield
    finally:
        signal_all(signal.SIGCONT)


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("moment", ["starting", "working", "reading the list"])
def test_a_service_ends_though_its_database_server_is_frozen(on_server: OnServer, database_kind: str, moment: str) -> None:
    """STYLE 6: a signal gets through at any time, and threads that wait for the server are not waited for longer than told."""
    server, cluster = on_server(database_kind, "st1")
    node = cluster.primary
    node.engine.dispose()
    with node.config.open("a") as settings:
        settings.write("[intervals]\nstop_within_s = 6\n")
    if moment == "starting":
        with frozen(server):
            node.start()
            assert node.process is not None
            pid = node.process.pid
            wait_for(lambda: not_answered(pid, server.port), "a connection that is not answered", 20)
            assert node.stop() in (0, 5)
        return
    cluster.start()
    wait_running(*cluster.nodes.values())
    node.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()
    node.engine.dispose()
    process = node.process
    assert process is not None
    with frozen(server):
        if moment == "reading the list":
            (node.home / "conf/sync_tables.conf").write_text(TABLES + "# edited\n")
        wait_for(lambda: not_answered(process.pid, server.port), "a thread that waits for the database", 20)
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    assert code in ((5,) if moment == "working" else (0, 5)), node.log
    assert ("did not stop within 6 s" in node.log) == (code == 5)
    assert "Traceback" not in node.log
    node.start()
    node.execute("INSERT INTO unit VALUES (2, 'two', NULL)")
    cluster.wait_equal()


def not_answered(pid: int, port: int) -> bool:
    """Whether a process has sent something to a server, or opened a connection, that the server has not taken in (proc_net_tcp(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    server = f":{port:04X}"
    own = {f"socket:[{row[9]}]": row[1] for row in rows if row[2].endswith(server)}
    here = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            here.add(own.get(str(one.readlink()), "another"))
    return any(
        row[2] in here and (row[9] == "0" or int(row[4].rpartition(":")[2], 16)) for row in rows if row[1].endswith(server)
    )


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_busy_minute_brings_no_false_alarm(cluster: Cluster) -> None:
    """TRAPS 9, 34: a heartbeat that is overtaken by batches says nothing of a restored database."""
    with writing(cluster.primary, 10) as writer:
        until = time.monotonic() + 90
        wait_told(lambda: time.monotonic() > until or writer.error, lambda: f"{writer}", 100)
    wait_arrived(cluster, 90)
    assert_whole(cluster)
    assert [node.status()["refused"] for node in cluster.nodes.values()] == [{}, {}, {}]
