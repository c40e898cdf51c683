"""`kill -9` of anything at any time, during work: afterwards all nodes are equal, without holes, nothing lost."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
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


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("victim", ["st1", "st2"])
def test_a_killed_database_loses_nothing(
    killable: Callable[[str], Server],
    new_database: NewDatabase,
    tmp_path: Path,
    vhost_url: str,
    database_kind: str,
    victim: str,
) -> None:
    """TRAPS 7, 29: under a node; its service goes on by itself, is still the only one, and stops in order."""
    server = killable(database_kind)
    urls = iter([new_database(database_kind)])
    names = ("st1", "st2")
    url = server.new_database("killed")
    cluster = make_cluster(
        tmp_path / "cluster",
        database_kind,
        vhost_url,
        lambda _kind: url if len(list((tmp_path / "cluster").glob("st*/conf"))) == names.index(victim) + 1 else next(urls),
        schema=SCHEMA,
        tables=TABLES,
        nodes=names,
    )
    node = cluster.nodes[victim]
    assert node.url == url
    try:
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
    finally:
        for one in cluster.nodes.values():
            one.close()
        server.drop_database(url)


def unread(client_ports: Iterable[int]) -> bool:
    """Whether anything was sent from one of these ports that the server has not taken in (proc_net_tcp(5))."""
    wanted = {f"{port:04X}" for port in client_ports}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, queues, *_ = line.split()
        if remote.rpartition(":")[2] in wanted and int(queues.rpartition(":")[2], 16):
            return True
    return False


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize("name", ["st1", "st2"])
def test_a_service_ends_though_its_database_answers_nothing(new_cluster: MakeCluster, database_kind: str, name: str) -> None:
    """STYLE 6: every wait ends when the process is to stop, in a bounded time; afterwards it goes on as if nothing was."""
    cluster = new_cluster(database_kind)
    cluster.start()
    wait_running(*cluster.nodes.values())
    node = cluster.nodes[name]
    query = (
        "SELECT pid, client_port FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'stsync'"
    )
    frozen = {int(pid): int(port) for pid, port in node.rows(query)}
    assert frozen
    process = node.process
    assert process is not None
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: unread(frozen.values()), "a thread that waits for the database", 10)
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert code == 5, node.log[-3000:]
    assert "did not stop within 30 s" in node.log
    assert "Traceback" not in node.log
    wait_for(lambda: not node.rows(query), "the database to forget the dead service's connections")
    node.start()
    cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()


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
