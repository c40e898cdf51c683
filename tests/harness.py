"""A whole cluster for tests: real databases, a real broker, real `stsync run` processes, and the databases' own comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine, create_engine

from common.catalog import listed_tables
from common.database import Database
from common.dialects.base import run as run_sql
from common.settings import Settings, load_settings
from common.trust.pki import init_cluster, issue_node
from publisher import capture
from tests import warm

STSYNC = [sys.executable, "-m", "common"]
PATIENCE_S = 60.0
# No session begins by itself where a test is not about that.
QUIET = "[sessions]\nrejoin = false\nverify_every_s = 1e9\nverify_at_once = false\n"
NO_BROKER = "amqp://nobody:secret@127.0.0.1:1/%2F"  # for nodes whose services do not run


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`; fails after the time, saying what did not come."""
    until = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"not within {timeout_s:.0f} s: {what() if callable(what) else what}"
        time.sleep(0.01)


@dataclass
class Node:
    """One server: its home, its settings file, its database, and its service while it runs."""

    name: str
    home: Path
    url: str
    process: "warm.WarmProcess | subprocess.Popen[bytes] | None" = None
    _engine: Engine | None = None
    _logged: int = 0

    @property
    def config(self) -> Path:
        return self.home / "stsync.toml"

    @property
    def log(self) -> str:
        path = self.home / "log"
        return path.read_text() if path.exists() else ""

    @property
    def words(self) -> str:
        """What the service has logged since it was last started."""
        return self.log[self._logged :]

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    @property
    def database(self) -> Database:
        return Database(self.settings.database)

    @property
    def engine(self) -> Engine:
        """As any other program connects: nothing of ours on it."""
        if self._engine is None:
            self._engine = create_engine(self.url)
            if self._engine.dialect.name == "sqlite":
                _enforce_foreign_keys(self._engine)
        return self._engine

    def bare_engine(self) -> Engine:
        """As `engine`, for a program that says BEGIN and COMMIT itself; nothing is set back where a connection ends, perhaps dead."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
        if engine.dialect.name == "sqlite":
            _enforce_foreign_keys(engine)
        return engine

    def execute(self, *statements: str, **values: Any) -> None:
        """Run statements in one transaction, as an admin server would."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), values)

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def command(self, *arguments: str, timeout_s: float = 60.0, cold: bool = False) -> subprocess.CompletedProcess[str]:
        """A run of the command; `cold`: as a user does, with a new interpreter that loads what it needs."""
        arguments = (*arguments, "--config", str(self.config))
        if cold:
            return subprocess.run([*STSYNC, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
        return warm.run(arguments, timeout_s, self._clock())

    def status(self) -> dict[str, Any]:
        found = self.command("status", "--json")
        assert found.stdout, found.stderr
        document: dict[str, Any] = json.loads(found.stdout)
        return document

    def faults(self) -> list[str]:
        """What `status` warns of, but that the nodes have to be compared after something was mended."""
        return [one for one in self.status()["warnings"] if "have to be compared" not in one]

    def start(self, environment: Mapping[str, str] = MappingProxyType({}), *, cold: bool = False) -> None:
        """Start the service; `cold`: see `command`, where its memory is measured."""
        arguments = ["run", "--config", str(self.config)]
        self._logged = len(self.log)
        if not cold:
            self.process = warm.WarmProcess(
                arguments, Path(os.devnull), self.home / "log", dict(environment) | self._clock()
            )
            return
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*STSYNC, *arguments], stdout=subprocess.DEVNULL, stderr=log, env=os.environ | dict(environment)
            )

    def turn_clock(self, seconds: float) -> None:
        """The node's clock is wrong by so much from now on; what was started before the first turn keeps the right time."""
        fresh = self.home / "clock.new"
        fresh.write_text(str(seconds))
        fresh.rename(self.home / "clock")

    def _clock(self) -> dict[str, str]:
        path = self.home / "clock"
        return {warm.CLOCK: str(path)} if path.exists() else {}

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process = None
        return code

    def sequence(self) -> int:
        return int(self.rows("SELECT sequence FROM stsync_node")[0][0])

    def close(self) -> None:
        self.kill()
        if self._engine is not None:
            self._engine.dispose()


def _enforce_foreign_keys(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA busy_timeout = 30000")


@dataclass
class Cluster:
    """A primary (st1) and its secondaries."""

    kind: str
    nodes: dict[str, Node]
    listed: dict[str, str] = field(default_factory=dict)

    @property
    def primary(self) -> Node:
        return self.nodes["st1"]

    @property
    def secondaries(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name != "st1"]

    def start(self, *, cold: bool = False) -> None:
        for node in self.nodes.values():
            node.start(cold=cold)

    def install(self) -> None:
        for node in self.nodes.values():
            capture.install(node.database, node.settings)

    def on_all(self, *statements: str) -> None:
        for node in self.nodes.values():
            node.execute(*statements)

    def differences(self) -> list[str]:
        """Where secondaries differ from the primary, compared row by row by the databases' own text of every listed column."""
        queries = self._queries()
        found = []
        expected = _snapshot(self.primary, queries)
        for node in self.secondaries:
            for name, here in _snapshot(node, queries).items():
                if here != expected[name]:
                    missing = len(set(expected[name]) - set(here))
                    extra = len(set(here) - set(expected[name]))
                    found.append(
                        f"{node.name}.{name}: {missing} rows missing or different, {extra} extra of {len(expected[name])}"
                    )
        return found

    def wait_equal(self, timeout_s: float = PATIENCE_S) -> None:
        """Until every node has the primary's sequence and an empty outbox stands on the primary; then all must be equal."""

        def arrived() -> bool:
            if self.primary.rows("SELECT count(*) FROM stsync_outbox")[0][0]:
                return False
            head = self.primary.sequence()
            return all(node.sequence() == head for node in self.secondaries)

        def where() -> str:
            logs = "\n".join(f"--- {n.name} at {n.sequence()}\n{n.log[-3000:]}" for n in self.nodes.values())
            return f"all nodes at the primary's sequence\n{logs}"

        wait_for(arrived, where, timeout_s)  # type: ignore[arg-type]
        found = self.differences()
        assert not found, found

    def _queries(self) -> dict[str, str]:
        database, settings = self.primary.database, self.primary.settings
        with database.connect() as connection:
            listed = listed_tables(database, connection, settings)
            connection.rollback()
        queries = {}
        for name, table in listed.items():
            row = database.dialect.row([(database.dialect.quote(c.name), c) for c in table.columns])
            where = f" WHERE ({table.where})" if table.where else ""
            queries[name] = f"SELECT {row} FROM {database.dialect.quote(name)}{where}"
        return queries


def _snapshot(node: Node, queries: dict[str, str]) -> dict[str, list[str]]:
    with node.database.connect(read_only=True) as connection:
        run = partial(connection.exec_driver_sql, execution_options={"no_parameters": True})
        return {name: sorted(str(row[0]) for row in run(query)) for name, query in queries.items()}


def make_cluster(
    directory: Path,
    kind: str,
    broker_url: str,
    new_database: Callable[[str], str],
    *,
    schema: Sequence[str],
    tables: str,
    nodes: Iterable[str] = ("st1", "st2", "st3"),
    settings: str = "",
) -> Cluster:
    """Homes, keys, settings, databases with the schema, and capture installed; no service runs yet."""
    names = list(nodes)
    directory.mkdir(exist_ok=True)
    init_cluster("mft", directory / "pki")
    made = {}
    for name in names:
        issue_node(directory / "pki", name, directory / "pki")
        home = directory / name
        (home / "conf").mkdir(parents=True)
        (home / "conf/sync_tables.conf").write_text(tables)
        url = new_database(kind)
        (home / "stsync.toml").write_text(_toml(name, names, home, url, broker_url, settings))
        made[name] = Node(name, home, url)
    cluster = Cluster(kind, made)
    cluster.on_all(*schema)
    cluster.install()
    return cluster


def _toml(name: str, names: list[str], home: Path, url: str, broker_url: str, more: str) -> str:
    roster = "".join(f'[[cluster.nodes]]\nname = "{one}"\nadmin_url = "https://{one}.example:444/"\n' for one in names)
    return f"""
[cluster]
name = "mft"
{roster}
[node]
name = "{name}"
home = "{home}"
[database]
url = "{url}"
[broker]
urls = ["{broker_url}"]
retry_max_s = 1.0
[trust]
key = "../pki/{name}.key"
certificate = "../pki/{name}.pem"
authorities = ["../pki/ca.pem"]
cluster_key = "../pki/cluster.key"
cluster_certificate = "../pki/cluster.pem"
{more}
{"" if "[sessions]" in more else QUIET}
"""


@contextmanager
def transaction(node: Node) -> Iterator[Connection]:
    """An explicit transaction that the test commits or rolls back itself."""
    with node.engine.connect() as connection:
        yield connection


__all__ = ["Cluster", "Node", "make_cluster", "run_sql", "transaction", "wait_for"]
