"""The cluster that is measured: a private database server per node, a private broker, and three `stsync run`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from tests.bench import work
from tests.bench.clients import TABLES
from tests.bench.figures import cpu_s, forget_peak, peak_mb
from tests.harness import Cluster, Node, make_cluster, wait_for

IDLE_S = 10.0
REST_S = 5.0  # until what polls has come to rest
_LISTED = "t\ncounter\n"
_TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


class StsyncSubject:
    """One primary, two secondaries, and two lone databases on the primary's server: one without triggers, one with."""

    def __init__(self, kind: str, directory: Path, rabbitmq: PrivateRabbitMQ, stack: ExitStack) -> None:
        self.kind = kind
        self.label = f"stsync on {_TITLES[kind]}"
        directory.mkdir()
        directory.chmod(0o711)
        self._admin: list[str] = []
        makers = _makers(kind, directory, stack, self._admin)
        self.bare = makers[0]("bare")
        with work.clients([self.bare]) as (client,):
            for statement in TABLES[kind]:
                client.run(statement)
        broker = rabbitmq.new_vhost()
        self.captured = self._make(directory / "captured", broker, iter([makers[0]("captured")]), ("st1",)).primary
        stack.callback(self.captured.close)
        self._cluster = self._make(directory / "cluster", broker, (one("node") for one in makers), ("st1", "st2", "st3"))
        for node in self._nodes:
            stack.callback(node.close)
        self._urls = [node.url for node in self._nodes]

    @property
    def source(self) -> str:
        """See Subject."""
        return self._urls[0]

    @property
    def copies(self) -> Sequence[str]:
        """See Subject."""
        return self._urls[1:]

    def start(self) -> None:
        """Start the services and wait until a first change has gone through."""
        self._cluster.start(cold=True)
        with work.clients(self._urls) as (source, *copies):
            source.run("INSERT INTO counter VALUES (1, -1)")
            work.until(lambda: all(one.counter() == -1 for one in copies), f"{self.label}: the first change", self)

    def empty(self) -> None:
        """See Subject. MariaDB's TRUNCATE fires no trigger, so there it is done on every node."""
        urls = self._urls if self.kind == "mariadb" else self._urls[:1]
        for url in urls:
            work.clear(url)
        wait_for(lambda: self._cluster.primary.rows("SELECT count(*) FROM stsync_outbox") == [(0,)], "an empty outbox", 120)
        work.tidy(self._admin, self._urls)

    def explain(self) -> str:
        """See Subject."""
        return "\n".join(f"--- {node.name}\n{node.log[-1500:]}" for node in self._nodes)

    def triggers(self) -> work.Results:
        """What the triggers cost a writer of single rows: the same client without and with them, no service running."""
        for url in (self.bare, self.captured.url):
            work.clear(url)
        self.captured.execute("DELETE FROM stsync_outbox")
        bare = work.write_singly(self.bare)
        captured = work.write_singly(self.captured.url)
        return {"bare_tx_s": bare, "captured_tx_s": captured, "trigger_cost": bare / captured}

    def bulk_memory(self) -> work.Results:
        """One transaction of 100,000 rows, with the peak memory of each process meanwhile."""
        pids = self._pids()
        for pid in pids.values():
            forget_peak(pid)
        found = work.bulk(self, 1, 100_000)
        return found | {f"peak_{name}_mb": peak_mb(pid) for name, pid in pids.items()}

    def idle(self) -> work.Results:
        """Share of a core that each process uses while nothing changes, percent."""
        pids = self._pids()
        time.sleep(REST_S)
        before, at = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(IDLE_S)
        elapsed = time.monotonic() - at
        return {f"idle_{name}_percent": 100 * (cpu_s(pid) - before[name]) / elapsed for name, pid in pids.items()}

    @property
    def _nodes(self) -> list[Node]:
        return list(self._cluster.nodes.values())

    def _pids(self) -> dict[str, int]:
        found = {}
        for node in self._nodes:
            if node.process is None or node.process.poll() is not None:
                raise work.BenchError(f"{self.label}: {node.name} does not run\n{self.explain()}")
            found[node.name] = node.process.pid
        return found

    def _make(self, directory: Path, broker: str, urls: Iterator[str], names: Sequence[str]) -> Cluster:
        return make_cluster(
            directory, self.kind, broker, lambda _kind: next(urls), schema=TABLES[self.kind], tables=_LISTED, nodes=names
        )


def _makers(kind: str, directory: Path, stack: ExitStack, admin: list[str]) -> list[Callable[[str], str]]:
    """Per node, what makes databases for it."""
    if kind == "sqlite":
        return [_files(directory, node) for node in ("st1", "st2", "st3")]
    server_type: type[PrivatePostgreSQL | PrivateMariaDB] = PrivatePostgreSQL if kind == "postgresql" else PrivateMariaDB
    servers = [server_type(directory / f"server{number}") for number in (1, 2, 3)]
    for server in servers:
        stack.callback(server.close)
        server.start()
    admin += [server.admin_url for server in servers]
    return [server.new_database for server in servers]


def _files(directory: Path, node: str) -> Callable[[str], str]:
    return lambda name: f"sqlite:///{directory / f'{node}-{name}.db'}"
