"""`kill -9` of anything at any time, during work: afterwards all nodes are equal, without holes, nothing lost."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from tests.conftest import NewDatabase
from tests.faults.conftest import assert_whole, frozen, mostly, wait_arrived, wait_running, wait_told
from tests.faults.test_broker_loss import BLOCKED_S
from tests.harness import Cluster, Node, make_cluster, wait_for
from tests.integration.conftest import SCHEMA, TABLES, MakeCluster
from tests.workload import more, pause, writing

SEEDS = [1]
LONG_SEEDS = [pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12)]
SERVER_SEEDS = LONG_SEEDS[3:8]  # 5 to 9: more than one kill in each
SETTLE_S = 2.5  # RabbitMQ 3.10 loses a quorum queue that was declared just before a kill (deploy/servers)
Server = PrivatePostgreSQL | PrivateMariaDB


def kill_and_start(node: Node) -> None:
    node.kill()
    node.start()


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


@mostly("mariadb")
@pytest.mark.parametrize("seed", [1, *LONG_SEEDS])
def test_everything_killed_in_turn_loses_nothing(new_cluster: MakeCluster, database_kind: str, seed: int) -> None:
    """TRAPS 7, 8: every service, again and again, without waiting for any of them; change sets span several batches."""
    cluster = new_cluster(database_kind, settings="[relay]\nbatch_bytes = 1024\n")
    cluster.start()
    wait_running(*cluster.nodes.values())
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


@mostly("postgresql")
@pytest.mark.parametrize("seed", [1, *SERVER_SEEDS])
def test_a_killed_broker_loses_nothing(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str, seed: int
) -> None:
    """TRAPS 11, 22, 25: nor stops any service; up to three times, at moments and for times of chance."""
    chance = random.Random(seed)
    broker.start()
    cluster = new_cluster(database_kind, broker_url=broker.new_vhost())
    cluster.start()
    wait_running(*cluster.nodes.values())
    declared = time.monotonic()
    with writing(cluster.primary, seed) as writer:
        wait_for(lambda: time.monotonic() - declared > SETTLE_S, "queues that the broker keeps")
        for _ in range(chance.randint(1, 3)):
            pause(chance, writer)
            away = time.monotonic()
            broker.kill()
            more(writer, chance.randint(1, 200))
            assert writer.standstill_s(away) < BLOCKED_S
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


@pytest.mark.parametrize("seed", [1, *SERVER_SEEDS])
@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("victim", ["st1", "st2"])
def test_a_killed_database_loses_nothing(on_server: OnServer, database_kind: str, victim: str, seed: int) -> None:
    """TRAPS 7, 29: under a node, up to three times; its service goes on by itself, is still the only one, and stops in order."""
    chance = random.Random(seed)
    server, cluster = on_server(database_kind, victim)
    node = cluster.nodes[victim]
    cluster.start()
    wait_running(*cluster.nodes.values())
    with writing(cluster.primary, seed, away=victim == "st1") as writer:
        for _ in range(chance.randint(1, 3)):
            pause(chance, writer)
            server.kill()
            server.start()
    node.engine.dispose()  # the test's own connections are dead too
    assert_whole(cluster)
    wait_told(lambda: node.status()["service"] == "running", node.status, 10)
    second = node.command("run", timeout_s=20)
    assert second.returncode == 3, second.stderr
    assert [one.stop() for one in cluster.nodes.values()] == [0, 0]
    assert "Traceback" not in node.log


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_numbers_are_never_given_twice_though_the_database_dies(on_server: OnServer, database_kind: str) -> None:
    """TRAPS 34: a secondary's reports and requests would be refused as replayed; what it reserved is kept before it is used."""
    server, cluster = on_server(database_kind, "st2")
    node = cluster.nodes["st2"]
    before = numbered(node)
    node.start()
    reserved = wait_for(lambda: (found := numbered(node)) > before and found, "numbers reserved")
    server.kill()
    node.kill()
    node.engine.dispose()
    server.start()
    assert numbered(node) == reserved


def numbered(node: Node) -> int:
    return int(node.rows("SELECT numbered FROM stsync_node")[0][0])


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
