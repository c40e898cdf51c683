"""`python -m tests.bench.full`: full synchronization of 200,000 rows in ten tables to two secondaries, beside dumps and the first copy
of PostgreSQL's logical replication, in one run."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy.engine import make_url

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from tests.bench import work
from tests.bench.clients import connect
from tests.bench.figures import forget_peak, peak_mb
from tests.harness import Cluster, Node, make_cluster, wait_for

KINDS = ("postgresql", "mariadb", "sqlite")
NAMES = [f"t{number}" for number in range(10)]
MARKS = {"empty": (1.3, None), "same": (0.4, 0.01), "few": (0.5, 0.05)}  # of the dump's time, and of its bytes
_COLUMNS = {
    "postgresql": "(id bigint PRIMARY KEY, n int, pad text, ts timestamptz)",
    "mariadb": "(id bigint PRIMARY KEY, n int, pad text, ts datetime)",
    "sqlite": "(id integer PRIMARY KEY, n int, pad text, ts text)",
}
_FILL = {
    "postgresql": "INSERT INTO {t} SELECT g, g % 97, repeat(md5(random()::text), 5), now() FROM generate_series(1, {rows}) g",
    "mariadb": "INSERT INTO {t} SELECT seq, seq % 97, repeat(md5(rand()), 5), now() FROM seq_1_to_{rows}",
    "sqlite": "INSERT INTO {t} WITH RECURSIVE s(g) AS (SELECT 1 UNION ALL SELECT g + 1 FROM s WHERE g < {rows})"
    " SELECT g, g % 97, replace(hex(zeroblob(5)), '00', hex(randomblob(16))), datetime('now') FROM s",
}
_EMPTY = {"postgresql": "TRUNCATE", "mariadb": "TRUNCATE", "sqlite": "DELETE FROM"}  # as the dump's copies are emptied
Found = dict[str, list[float]]


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.full", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="sqlite|postgresql|mariadb", help="default: all three")
    parser.add_argument("--runs", type=int, default=3, help="how many runs to take the median of (default 3)")
    parser.add_argument("--rows", type=int, default=20_000, help="rows a table (default 20,000)")
    options = parser.parse_args()
    for kind in options.kinds or KINDS:
        found = _measure(kind, options.runs, options.rows)
        _show(kind, found)
    return 0


def _measure(kind: str, runs: int, rows: int) -> Found:
    root = Path(tempfile.mkdtemp(prefix="stsync-bench-"))
    root.chmod(0o711)
    found: Found = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        own = _Own(kind, root, stack, rows)
        peer = _Peer(kind, root / "peer", stack, rows) if kind != "sqlite" else None
        for _ in range(runs):
            for results in (own.run(), {} if peer is None else peer.run()):
                for name, value in results.items():
                    found.setdefault(name, []).append(value)
            print({name: round(values[-1], 3) for name, values in found.items()}, file=sys.stderr, flush=True)
    return found


def _servers(kind: str, root: Path, stack: ExitStack) -> Sequence[PrivatePostgreSQL | PrivateMariaDB]:
    root.mkdir()
    root.chmod(0o711)
    maker: type[PrivatePostgreSQL | PrivateMariaDB] = PrivatePostgreSQL if kind == "postgresql" else PrivateMariaDB
    servers = [maker(root / f"server{number}") for number in (1, 2, 3)]
    for server in servers:
        stack.enter_context(server)
    return servers


class _Own:
    """A cluster of three whose primary has the rows."""

    def __init__(self, kind: str, root: Path, stack: ExitStack, rows: int) -> None:
        self._kind = kind
        broker = stack.enter_context(PrivateRabbitMQ(root / "rabbitmq"))
        if kind == "sqlite":
            urls = iter([f"sqlite:///{root / name}.db" for name in ("one", "two", "three")])
        else:
            urls = iter([server.new_database("node") for server in _servers(kind, root / "own", stack)])
        schema = [f"CREATE TABLE {name} {_COLUMNS[kind]}" for name in NAMES]
        self.cluster: Cluster = make_cluster(
            root / "cluster", kind, broker.new_vhost(), lambda _kind: next(urls), schema=schema, tables="\n".join(NAMES)
        )
        for node in self.cluster.nodes.values():
            stack.callback(node.close)
        primary = self.cluster.primary
        primary.execute(*(_FILL[kind].format(t=name, rows=rows) for name in NAMES), "DELETE FROM stsync_outbox")
        self.cluster.start(cold=True)
        wait_for(lambda: all(one["state"] == "in_sync" for one in primary.status()["nodes"]), "in sync")
        self._few = 0

    def run(self) -> dict[str, float]:
        """Into empty, nothing differs, one row of a thousand differs."""
        for node in self.cluster.secondaries:
            self._edit(node, *(f"{_EMPTY[self._kind]} {name}" for name in NAMES))
        found = self._sync("empty") | self._sync("same")
        self._few += 1
        for node in self.cluster.secondaries:
            self._edit(node, *(f"UPDATE {name} SET n = -{self._few} WHERE id % 1000 = {self._few}" for name in NAMES))
        return found | self._sync("few")

    def _edit(self, node: Node, *statements: str) -> None:
        node.execute(*statements, "DELETE FROM stsync_outbox")

    def _sync(self, name: str) -> dict[str, float]:
        pids = [node.process.pid for node in self.cluster.nodes.values() if node.process is not None]
        for pid in pids:
            forget_peak(pid)
        begun = time.monotonic()
        done = self.cluster.primary.command("sync", "--json", timeout_s=600, cold=True)
        seconds = time.monotonic() - begun
        document = json.loads(done.stdout)
        if done.returncode:
            raise work.BenchError(f"sync: {done.stdout}")
        sent = max(node["bytes_sent"] for node in document["nodes"])
        ((session_ms,),) = self.cluster.primary.rows(
            "SELECT ended_ms - requested_ms FROM stsync_sessions ORDER BY id DESC LIMIT 1"
        )
        return {
            f"{name}_s": seconds,
            f"{name}_session_s": session_ms / 1000,
            f"{name}_bytes": sent,
            f"{name}_peak_mb": max(peak_mb(pid) for pid in pids),
        }


class _Peer:
    """The same rows on servers of their own: the dump's tools, and for PostgreSQL the first copy of logical replication."""

    def __init__(self, kind: str, root: Path, stack: ExitStack, rows: int) -> None:
        self._kind = kind
        servers = _servers(kind, root, stack)
        if kind == "postgresql":
            with work.clients([servers[0].admin_url]) as (admin,):
                admin.run("ALTER SYSTEM SET wal_level = 'logical'")
            servers[0].stop()
            servers[0].start()
            self._urls = [server.admin_url for server in servers]
        else:
            self._urls = [server.new_database("peer") for server in servers]
        for url in self._urls:
            with work.clients([url]) as (client,):
                for name in NAMES:
                    client.run(f"CREATE TABLE {name} {_COLUMNS[kind]}")
        with work.clients(self._urls[:1]) as (source,):
            for name in NAMES:
                source.run(_FILL[kind].format(t=name, rows=rows))

    def run(self) -> dict[str, float]:
        """One copy after the other, as a script does that has no more to say than this; and both at once."""
        self._clear()
        one_by_one = sum(self._dumped([url]) for url in self._urls[1:])
        self._clear()
        found = {"dump_s": one_by_one, "dump_at_once_s": self._dumped(self._urls[1:]), "dump_bytes": float(self._size())}
        self._clear()
        return found | (self._first_copy() if self._kind == "postgresql" else {})

    def _dumped(self, urls: Sequence[str]) -> float:
        begun = time.monotonic()
        pipes = [
            subprocess.Popen(["bash", "-o", "pipefail", "-c", self._pipe(url)], stdout=subprocess.DEVNULL) for url in urls
        ]
        codes = [pipe.wait() for pipe in pipes]
        if any(codes):
            raise work.BenchError("a dump failed")
        return time.monotonic() - begun

    def _clear(self) -> None:
        for url in self._urls[1:]:
            with work.clients([url]) as (copy,):
                for name in NAMES:
                    copy.run(f"TRUNCATE {name}")

    def _dump(self) -> str:
        at = make_url(self._urls[0])
        if self._kind == "postgresql":
            return f"PGPASSWORD={at.password} pg_dump -a -t 't?' -h 127.0.0.1 -p {at.port} -U {at.username} {at.database}"
        tables = " ".join(NAMES)
        options = "--no-defaults -t --single-transaction --quick"
        return (
            f"MYSQL_PWD={at.password} mariadb-dump {options} -h127.0.0.1 -P{at.port} -u{at.username} {at.database} {tables}"
        )

    def _pipe(self, url: str) -> str:
        to = make_url(url)
        if self._kind == "postgresql":
            load = f"PGPASSWORD={to.password} psql -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p {to.port} -U {to.username} {to.database}"
        else:
            load = f"MYSQL_PWD={to.password} mariadb --no-defaults -h127.0.0.1 -P{to.port} -u{to.username} {to.database}"
        return f"{self._dump()} | {load}"

    def _size(self) -> int:
        """Bytes that a dump is."""
        done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{self._dump()} | wc -c"], capture_output=True, check=True)
        return int(done.stdout)

    def _first_copy(self) -> dict[str, float]:
        at = make_url(self._urls[0])
        source = connect(self._urls[0])
        source.run("CREATE PUBLICATION full_copy FOR TABLE " + ", ".join(NAMES))
        copies = [connect(url) for url in self._urls[1:]]
        begun = time.monotonic()
        for number, copy in enumerate(copies):
            copy.run(
                f"CREATE SUBSCRIPTION full_copy CONNECTION 'host={at.host} port={at.port} user={at.username}"
                f" password={at.password} dbname={at.database}' PUBLICATION full_copy WITH (slot_name = 'full_{number}')"
            )
        with work.clients(self._urls[1:]) as watchers:
            work.until(lambda: all(_copied(url) for url in self._urls[1:]), "the first copy")
            del watchers
        seconds = time.monotonic() - begun
        for copy in copies:
            copy.run("DROP SUBSCRIPTION full_copy")
        source.run("DROP PUBLICATION full_copy")
        return {"first_copy_s": seconds}


def _copied(url: str) -> bool:
    import psycopg  # noqa: PLC0415

    at = make_url(url)
    with psycopg.connect(
        host=at.host, port=at.port, user=at.username, password=at.password, dbname=at.database, autocommit=True
    ) as link:
        rows = link.execute("SELECT count(*) FILTER (WHERE srsubstate = 'r'), count(*) FROM pg_subscription_rel").fetchone()
    return rows is not None and rows[0] == rows[1] == len(NAMES)


def _show(kind: str, found: Found) -> None:
    median = {name: statistics.median(values) for name, values in found.items()}
    at_once_s = median.get("dump_at_once_s", 0.0)
    dump_s, dump_bytes = median.get("dump_s"), median.get("dump_bytes")
    print(f"\n{kind}: medians of {len(found['empty_s'])} runs, {os.cpu_count()} processors")
    for name, (time_mark, bytes_mark) in MARKS.items():
        seconds, session_s, size = (median[f"{name}_{what}"] for what in ("s", "session_s", "bytes"))
        line = f"  {name:6} {seconds:6.2f} s, {session_s:.2f} from request to end, {size / 1e6:.2f} MB"
        line += f", at most {median[f'{name}_peak_mb']:.0f} MB of memory a process"
        if dump_s and dump_bytes:
            line += f"; {seconds / dump_s:.2f} × the dump's time (mark {time_mark}), {session_s / dump_s:.2f} without the command's"
            line += f" own; {seconds / at_once_s:.2f} and {session_s / at_once_s:.2f} × at once"
            if bytes_mark:
                line += f", {size / dump_bytes:.2%} of its bytes (mark {bytes_mark:.0%})"
        print(line)
    if dump_s and dump_bytes:
        print(
            f"  dump into one after the other {dump_s:.2f} s, both at once {at_once_s:.2f} s, {dump_bytes / 1e6:.1f} MB each"
        )
    if "first_copy_s" in median:
        print(f"  first copy of logical replication to both {median['first_copy_s']:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
