"""The databases' own replication, doing the same work: a source and two copies on three private servers."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pymysql
from sqlalchemy.engine import make_url

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL
from tests.bench import work
from tests.bench.clients import TABLES

_SETTLE_S = 2.0


class BinlogMariaDB(PrivateMariaDB):
    """MariaDB with a server id of its own and, as the source of replication, a row-based binlog (sync_binlog 0, its default)."""

    def __init__(self, directory: Path, number: int) -> None:
        super().__init__(directory)
        self._number = number

    def _prepare(self) -> None:
        super()._prepare()
        path = self.directory / "server.cnf"
        lines = [f"server-id = {self._number}"]
        text = path.read_text(encoding="utf-8")
        if self._number == 1:
            text = text.replace("skip-log-bin\n", "")
            lines += ["log-bin = bin", "binlog-format = ROW"]
        self.owner.write(path, text + "\n".join(lines) + "\n")


class PostgresqlPeer:
    """Logical replication: one publication, two subscriptions."""

    label = "PostgreSQL logical replication"

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        directory.mkdir()
        directory.chmod(0o711)
        servers = [stack.enter_context(PrivatePostgreSQL(directory / f"server{number}")) for number in (1, 2, 3)]
        self._urls = [server.admin_url for server in servers]
        with work.clients(self._urls[:1]) as (source,):
            source.run("ALTER SYSTEM SET wal_level = 'logical'")
        servers[0].stop()
        servers[0].start()
        with work.clients(self._urls) as links:
            for link in links:
                for statement in TABLES["postgresql"]:
                    link.run(statement)
            links[0].run("INSERT INTO counter VALUES (1, -1)")
            links[0].run("CREATE PUBLICATION bench FOR TABLE counter, t")
            at = make_url(self._urls[0])
            for number, link in enumerate(links[1:]):
                link.run(
                    f"CREATE SUBSCRIPTION bench CONNECTION 'host={at.host} port={at.port} user={at.username}"
                    f" password={at.password} dbname={at.database}' PUBLICATION bench WITH (slot_name = 'copy_{number}')"
                )

    @property
    def source(self) -> str:
        """See Subject."""
        return self._urls[0]

    @property
    def copies(self) -> Sequence[str]:
        """See Subject."""
        return self._urls[1:]

    def start(self) -> None:
        """Wait until the first copy of the tables is done."""
        _first_change(self)

    def empty(self) -> None:
        """See Subject: TRUNCATE is replicated."""
        work.clear(self.source)
        with work.clients(self.copies) as copies:
            work.until(lambda: all(one.rows() == 0 for one in copies), f"{self.label}: t empty", self)
        work.tidy(self._urls, self._urls)

    def explain(self) -> str:
        """See Subject."""
        return self.label


class MariadbPeer:
    """Binlog replication by global transaction ids: one source, two replicas that write no binlog."""

    label = "MariaDB binlog replication"

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        directory.mkdir()
        directory.chmod(0o711)
        servers = [stack.enter_context(BinlogMariaDB(directory / f"server{number}", number)) for number in (1, 2, 3)]
        at = make_url(servers[0].admin_url)
        with work.clients([server.admin_url for server in servers]) as (source, *copies):
            source.run(f"CREATE USER copier@'127.0.0.1' IDENTIFIED BY '{servers[0].password}'")
            source.run("GRANT REPLICATION SLAVE ON *.* TO copier@'127.0.0.1'")
            source.run("SET GLOBAL gtid_slave_pos = ''")
            source.run("RESET MASTER")  # what the server wrote of its own users is not to be replicated
            for copy in copies:
                copy.run(
                    f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={at.port}, MASTER_USER='copier',"
                    f" MASTER_PASSWORD='{servers[0].password}', MASTER_USE_GTID=slave_pos"
                )
                copy.run("START SLAVE")
            source.run("CREATE DATABASE bench CHARACTER SET utf8mb4")
            self._urls = [
                make_url(server.admin_url).set(database="bench").render_as_string(hide_password=False) for server in servers
            ]
        with work.clients(self._urls[:1]) as (source,):
            for statement in (*TABLES["mariadb"], "INSERT INTO counter VALUES (1, -1)"):
                source.run(statement)
        for url in self.copies:
            work.until(lambda url=url: _has_table(url), f"{self.label}: the tables on every copy", self)  # type: ignore[misc]

    @property
    def source(self) -> str:
        """See Subject."""
        return self._urls[0]

    @property
    def copies(self) -> Sequence[str]:
        """See Subject."""
        return self._urls[1:]

    def start(self) -> None:
        """Wait until a first change has gone through."""
        _first_change(self)

    def empty(self) -> None:
        """See Subject: TRUNCATE is replicated."""
        work.clear(self.source)

    def explain(self) -> str:
        """See Subject."""
        return self.label


Peer = PostgresqlPeer | MariadbPeer
PEERS: dict[str, type[PostgresqlPeer] | type[MariadbPeer]] = {"postgresql": PostgresqlPeer, "mariadb": MariadbPeer}


def _first_change(peer: Peer) -> None:
    with work.clients(peer.copies) as copies:
        work.until(lambda: all(one.counter() == -1 for one in copies), f"{peer.label}: the first change", peer)
    time.sleep(_SETTLE_S)


def _has_table(url: str) -> bool:
    try:
        with work.clients([url]) as (client,):
            client.rows()
    except pymysql.Error:
        return False
    return True
