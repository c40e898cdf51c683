"""Three nodes on one machine: homes, settings, keys, databases, services; all in one directory, all ours to end."""

import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.demo import broker
from deploy.demo.databases import create_schema
from deploy.demo.errors import DemoError
from deploy.demo.lists import tables_conf
from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from deploy.servers.base import PrivateServer
from deploy.servers.processes import Child, Owner, tail

NAMES = ("st1", "st2", "st3")
UP_SECONDS = 60.0
_STOP_SECONDS = 20.0
_COMMAND_SECONDS = 120.0


@dataclass
class Node:
    """One server of the cluster."""

    name: str
    folder: Path
    url: str
    service: Child | None = None

    @property
    def settings(self) -> Path:
        """Its settings file."""
        return self.folder / "stsync.toml"

    @property
    def home(self) -> Path:
        """Its FILEDRIVEHOME."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """What its service writes."""
        return self.folder / "stsync.log"


class Cluster:
    """The primary st1 and the secondaries st2, st3; a context manager that ends and removes what it made.

    With `keep`, a successful end leaves everything running; `release` says that this is so.
    """

    def __init__(self, root: Path, kind: str, broker_url: str | None, *, keep: bool) -> None:
        self.root = root
        self.kind = kind
        self.keep = keep
        self.name = f"demo-{secrets.token_hex(3)}"
        self.nodes: list[Node] = []
        self.servers: list[PrivateServer] = []
        self.lent_broker = broker_url is not None
        self._broker_url = broker_url

    @property
    def primary(self) -> Node:
        """The node whose changes travel."""
        return self.nodes[0]

    @property
    def secondaries(self) -> list[Node]:
        """The nodes that follow."""
        return self.nodes[1:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        if kind is not None or not self.keep:
            self.end()

    def end(self) -> None:
        """Stop the services, then the servers; the directory is the caller's."""
        services = [node.service for node in self.nodes if node.service is not None]
        for service in services:
            service.ask(signal.SIGTERM)
        for service in services:
            service.stop(signal.SIGTERM, _STOP_SECONDS)
        try:
            if self.lent_broker and services:
                broker.remove(self.primary.settings)
        finally:
            for server in reversed(self.servers):
                server.close()

    def start_servers(self) -> None:
        """The broker, unless one was named, and the database server, unless it is SQLite."""
        if self._broker_url is None:
            server = PrivateRabbitMQ(self.root / "rabbitmq", keep=self.keep)
            self.servers.append(server)
            self._broker_url = server.start().url()
        else:
            broker.check(self._broker_url)
        make = self._databases()
        for name in NAMES:
            folder = self.root / name
            (folder / "home" / "conf").mkdir(parents=True)
            self.nodes.append(Node(name, folder, make(name)))

    def prepare_nodes(self, keep_local: Callable[[Node], None]) -> None:
        """Tables, lists, settings, keys, a secondary's own rows, and `stsync install` on every node."""
        authority = self.root / "pki"
        self.stsync("pki", "init", "--cluster", self.name, "--out", str(authority))
        for node in self.nodes:
            create_schema(node.url)
            if node is not self.primary:
                keep_local(node)
            (node.home / "conf" / "sync_tables.conf").write_text(tables_conf(), encoding="utf-8")
            (node.home / "conf" / "sync.conf").write_text("# no files in this demo\n", encoding="utf-8")
            (node.home / "conf" / "sync.excl").write_text("", encoding="utf-8")
            self.stsync("pki", "issue", "--ca", str(authority), "--node", node.name, "--out", str(node.folder))
            node.settings.touch(mode=0o600)
            node.settings.write_text(self._settings(node), encoding="utf-8")
            self.stsync("install", "--config", str(node.settings))

    def start_services(self) -> None:
        """`stsync run` on every node; returns when the primary reports every secondary in sync."""
        me = Owner(os.geteuid(), os.getegid(), switch=False)
        for node in self.nodes:
            words = [str(broker.STSYNC), "run", "--config", str(node.settings)]
            node.service = Child(words, me, _environment(), self.root, node.log, None if self.keep else "TERM")
        self.wait_in_sync(UP_SECONDS)

    def wait_in_sync(self, seconds: float) -> None:
        """Wait until all secondaries are in sync with nothing left to do; DemoError with the log of one that is not."""
        deadline = time.monotonic() + seconds
        while waiting := self._waiting():
            for node in self.nodes:
                if node.service is None or not node.service.alive:
                    raise DemoError(f"the service of {node.name} ended; the end of its log:\n{tail(node.log)}")
            if time.monotonic() > deadline:
                node, state = waiting[0]
                raise DemoError(f"{node.name} is {state} after {seconds:.0f} s; the end of its log:\n{tail(node.log)}")
            time.sleep(0.1)

    def status(self) -> dict[str, Any]:
        """`stsync status --json` of the primary."""
        printed = self.stsync("status", "--json", "--config", str(self.primary.settings), allowed=(0, 1))
        document = json.loads(printed)
        if not isinstance(document, dict):
            raise DemoError(f"stsync status --json printed no object: {printed[:200]}")
        return document

    def stsync(self, *words: str, allowed: tuple[int, ...] = (0,)) -> str:
        """Run a command of stsync and return what it printed."""
        try:
            done = subprocess.run(
                [str(broker.STSYNC), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=_environment(),
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DemoError(f"stsync {words[0]} could not be run to its end: {exc}") from exc
        if done.returncode not in allowed:
            raise DemoError(f"stsync {' '.join(words[:2])} ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def _databases(self) -> Callable[[str], str]:
        if self.kind == "sqlite":
            return lambda name: f"sqlite:///{self.root / name / 'configuration.db'}"
        maker = PrivateMariaDB if self.kind == "mariadb" else PrivatePostgreSQL
        server = maker(self.root / self.kind, keep=self.keep)
        self.servers.append(server)
        return server.start().new_database

    def _waiting(self) -> list[tuple[Node, str]]:
        states = {one["name"]: one for one in self.status()["nodes"]}
        found = []
        for node in self.secondaries:
            known = states.get(node.name, {"state": "unknown"})
            if known["state"] != "in_sync" or known["behind"]:
                found.append((node, f"{known['state']}, {known.get('behind', '?')} behind"))
        return found

    def _settings(self, node: Node) -> str:
        roster = "".join(f'[[cluster.nodes]]\nname = "{one}"\nadmin_url = "https://{one}.example:444/"\n' for one in NAMES)
        return (
            f'[cluster]\nname = "{self.name}"\nmode = "active"\n{roster}\n'
            f'[node]\nname = "{node.name}"\nhome = {json.dumps(str(node.home))}\n\n'
            f"[database]\nurl = {json.dumps(node.url)}\n\n"
            f"[broker]\nurls = [{json.dumps(self._broker_url)}]\n\n"
            f'[trust]\nkey = "{node.name}.key"\ncertificate = "{node.name}.pem"\nauthorities = ["../pki/ca.pem"]\n'
            'cluster_key = "../pki/cluster.key"\ncluster_certificate = "../pki/cluster.pem"\n'
        )


def _environment() -> dict[str, str]:
    """Ours, without settings that were meant for another node."""
    return {key: value for key, value in os.environ.items() if not re.match("STSYNC_", key)}
