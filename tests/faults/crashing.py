"""Clusters whose services die at named points (tests.crashpoints), one for each database, kept from one test to the next."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pika
import pytest

from common.topology import Topology
from deploy.servers import PrivateRabbitMQ
from tests import crashpoints
from tests.faults.conftest import assert_whole, wait_running, wait_told
from tests.harness import Cluster, Node, make_cluster
from tests.integration.conftest import SCHEMA, TABLES

NODES = ("st1", "st2")
_QUEUE = Topology("mft", NODES, "st1").node_queue("st2")
SETTINGS = """
[relay]
batch_bytes = 1024
page_rows = 20
[replay]
retry_quarantine_s = 0.5
[intervals]
heartbeat_s = 0.25
catch_up_retry_s = 0.5
[log]
level = "debug"
"""
# A program's own triggers on the secondary note each time that a row of `tick` is written there.
_TICKS = (
    f"CREATE TABLE {crashpoints.TICK} (id BIGINT PRIMARY KEY, what VARCHAR(20))",
    "CREATE TABLE noted (id BIGINT)",
    "CREATE TABLE tock (id BIGINT PRIMARY KEY, one TEXT, other TEXT)",
)
_SAYS_POSITION = ("primary_started", "secondary_started", "drained", "applied")
_NOTE = {
    "sqlite": "BEGIN INSERT INTO noted VALUES (NEW.id); END",
    "mariadb": "FOR EACH ROW INSERT INTO noted VALUES (NEW.id)",
    "postgresql": "FOR EACH ROW EXECUTE FUNCTION note()",
}
_PG_NOTE = """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
 INSERT INTO noted VALUES (NEW.id); RETURN NULL; END $$"""


class Crashing:
    """A primary and a secondary with small batches, and the ticks that tell whether each change came exactly once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.whole = True
        self._ticks = 0

    def tick(self, times: int = 1, more: int = 0) -> None:
        """In one statement; then another table in the same transaction, for a secondary to need two, with so many more characters."""
        rows = ", ".join(f"({self._ticks + one}, 'tick')" for one in range(1, times + 1))
        self._ticks += times
        one, other = (random.randbytes(more // 4).hex() for _ in range(2))
        self.cluster.primary.execute(
            f"INSERT INTO tick VALUES {rows}", f"INSERT INTO tock VALUES ({self._ticks}, '{one}', '{other}')"
        )

    def arm(self, point: str, node: str, times: int, environment: Mapping[str, str] = MappingProxyType({})) -> Node:
        """Start a node's service anew, so that it dies when the point is reached for the `times`th time."""
        self.whole = False
        victim = self.cluster.nodes[node]
        victim.kill()
        (victim.home / "log").unlink()
        victim.start({**environment, crashpoints.VARIABLE: f"{point}:{times}"})
        return victim

    def wait_dead(self, victim: Node, point: str, *, quiet: bool = False) -> None:
        """Tick (but for `quiet`) until the process is dead, and see that it died at the point, and what it had committed by then."""
        process = victim.process
        assert process is not None

        def dead() -> bool:
            if not quiet:
                self.tick()
            return process.poll() is not None

        wait_told(dead, lambda: f"reached the point: {point}\n{victim.log[-3000:]}", 20)
        assert process.returncode == -9, victim.log[-3000:]
        assert victim.log.endswith(crashpoints.words(point)), victim.log[-3000:]
        ahead = crashpoints.POINTS[point].ahead
        assert ahead in (None, victim.sequence() > _said(victim)), (
            f"{victim.sequence()}, {_said(victim)}: {victim.log[-3000:]}"
        )

    def waiting(self) -> int:
        """How many batches st2's queue holds while nobody consumes them; heartbeats, which do not persist and expire, beside."""
        with self._channel() as channel:
            left, found = channel.queue_declare(_QUEUE, passive=True).method.message_count, 0
            for _, properties, _ in channel.consume(_QUEUE, inactivity_timeout=1.0):
                left -= 1
                found += properties is not None and properties.delivery_mode == 2
                if properties is None or not left:
                    break
            return found  # all of them go back to the queue

    def purge(self) -> None:
        """Empty st2's queue."""
        with self._channel() as channel:
            channel.queue_purge(_QUEUE)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        url = self.cluster.primary.settings.broker.urls[0].get_secret_value()
        connection = pika.BlockingConnection(pika.URLParameters(url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def assert_whole(self) -> None:
        """See tests.faults.conftest; and each tick was applied once."""
        assert_whole(self.cluster, 30)
        for node in self.cluster.secondaries:
            assert node.rows("SELECT id, count(*) FROM noted GROUP BY id HAVING count(*) <> 1") == [], (
                "applied more than once"
            )
            assert node.rows("SELECT count(*) FROM noted") == [(self._ticks,)]
        self.whole = True


def _said(node: Node) -> int:
    """The last position that the service has logged."""
    lines = [json.loads(line) for line in node.log.splitlines() if line.startswith("{")]
    return int([one["sequence"] for one in lines if one["event"] in _SAYS_POSITION][-1])


class Kept:
    """Gives the running cluster of a database, a new one after a test that left it in ruins."""

    def __init__(
        self,
        request: pytest.FixtureRequest,
        broker: PrivateRabbitMQ,
        directories: pytest.TempPathFactory,
        cleanup: ExitStack,
    ) -> None:
        self._request, self._broker, self._directories, self._cleanup = request, broker, directories, cleanup
        self._made: dict[str, Crashing] = {}
        self._numbers = count()

    def get(self, kind: str) -> Crashing:
        if kind not in self._made or not self._made[kind].whole:
            self._made[kind] = Crashing(self._make(kind))
        return self._made[kind]

    def _make(self, kind: str) -> Cluster:
        directory = self._directories.mktemp("crashing")
        cluster = make_cluster(
            directory / "cluster",
            kind,
            self._broker.new_vhost(),
            lambda kind: self._database(kind, directory),
            schema=(*SCHEMA, *_TICKS),
            tables=TABLES + "tick\ntock\n",
            nodes=NODES,
            settings=SETTINGS,
        )
        for node in cluster.nodes.values():
            self._cleanup.callback(node.close)
        notes = [f"CREATE TRIGGER note_{event} AFTER {event} ON tick {_NOTE[kind]}" for event in ("INSERT", "UPDATE")]
        cluster.nodes["st2"].execute(*([_PG_NOTE] if kind == "postgresql" else []), *notes)
        cluster.start()
        wait_running(*cluster.nodes.values())
        return cluster

    def _database(self, kind: str, directory: Path) -> str:
        if kind == "sqlite":
            return f"sqlite:///{directory / f'{next(self._numbers)}.db'}"
        server = self._request.getfixturevalue(kind)
        url: str = server.new_database("crashing")
        self._cleanup.callback(server.drop_database, url)
        return url
