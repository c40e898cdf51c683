"""What an administrator does in the demo, in plain SQL as any program would, and how soon each secondary shows it."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import OperationalError

from deploy.demo.cluster import Cluster, Node
from deploy.demo.data import Maker, Rows
from deploy.demo.databases import engine, load, reported
from deploy.demo.errors import DemoError
from deploy.demo.schema import server_configuration
from deploy.servers.processes import tail

ARRIVE_SECONDS = 60.0
LOCAL, COMMON = "Parameter.000", "Parameter.001"
_POLL_SECONDS = 0.002
_IMPORTED = 2500
_NEW_ROWS = " + ".join(
    f"(SELECT count(*) FROM {table} WHERE account = 'acme')" for table in ("virtual_user", "site", "certificate")
)
_SET_PARAMETER = "UPDATE server_configuration SET settings = :settings, read_only = 1 WHERE name = :name"


@dataclass(frozen=True)
class Step:
    """A change on the primary, and a question to each secondary whose answer shows that it is there."""

    title: str
    change: Callable[[Connection], int]
    question: str
    answer: int
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a step took: rows written, the primary's own transaction, and commit → visible on each secondary."""

    title: str
    rows: int
    transaction_ms: float
    lag_ms: Mapping[str, float]


class _Watcher(threading.Thread):
    """Asks one secondary's database again and again until it shows the change, or `stopped`."""

    def __init__(self, node: Node, step: Step, stopped: threading.Event) -> None:
        super().__init__(name=f"watch-{node.name}", daemon=True)
        self.node = node
        self.seen_at: float | None = None
        self.asked = threading.Event()
        self._step = step
        self._stopped = stopped

    def run(self) -> None:
        with engine(self.node.url).connect() as plain:
            link = plain.execution_options(isolation_level="AUTOCOMMIT")
            while not self._stopped.is_set():
                if self._shows(link):
                    self.seen_at = time.perf_counter()
                    return
                self.asked.set()
                time.sleep(_POLL_SECONDS)

    def _shows(self, link: Connection) -> bool:
        try:
            return bool(link.scalar(text(self._step.question), self._step.values) == self._step.answer)
        except OperationalError as exc:  # SQLite was busy: ask again
            if "locked" not in str(exc):
                raise
            return False


def run_steps(cluster: Cluster, show: Callable[[Measured], None]) -> None:
    """Each step in turn; DemoError when one does not arrive."""
    for step in _steps(Maker()):
        show(_measure(cluster, step))


def local_values(cluster: Cluster) -> dict[str, str]:
    """What each node holds as the parameter that is local; DemoError if the primary's has travelled."""
    query = select(server_configuration.c.settings).where(server_configuration.c.name == LOCAL)
    found = {}
    for node in cluster.nodes:
        with reported(f"read {LOCAL} on {node.name}"), engine(node.url).connect() as link:
            found[node.name] = json.dumps(link.scalar(query), ensure_ascii=False)
    for node in cluster.secondaries:
        if found[node.name] != json.dumps([f"kept by {node.name}"]):
            raise DemoError(f"{LOCAL} is local, and yet {node.name} now holds {found[node.name]}")
    return found


def keep_local(node: Node) -> None:
    """Give a secondary its own value of the parameter that is local, before anything is installed."""
    row = Maker().parameter(LOCAL, local=True) | {"settings": [f"kept by {node.name}"]}
    with reported(f"write to {node.name}"), engine(node.url).begin() as link:
        load(link, {"server_configuration": [row]})


def _steps(maker: Maker) -> list[Step]:
    rows = maker.rows()
    gone = rows["subscription"][7]["id"]
    return [
        Step(
            "initial configuration in one transaction",
            lambda link: load(link, rows),
            f"SELECT count(*) FROM server_configuration WHERE name = '{COMMON}'",
            1,
        ),
        Step(
            "create an account: 2 logins, 2 sites, a certificate",
            lambda link: _new_account(link, maker),
            f"SELECT {_NEW_ROWS}",
            5,
        ),
        Step(
            "rename a business unit; accounts refer to it by name",
            lambda link: _run(link, "UPDATE business_unit SET name = 'Cards North' WHERE name = :old", old=_leaf(rows)),
            "SELECT count(*) FROM business_unit WHERE name = 'Cards North'",
            1,
        ),
        Step(
            "delete a subscription",
            lambda link: _run(link, "DELETE FROM subscription WHERE id = :id", id=gone),
            "SELECT count(*) FROM subscription WHERE id = :id",
            0,
            {"id": gone},
        ),
        Step(
            f"import {2 * _IMPORTED} rows in one transaction",
            lambda link: _import(link, maker),
            f"SELECT count(*) FROM virtual_user WHERE login_name = '{_imported(_IMPORTED - 1)}.0'",
            1,
        ),
        Step(
            f"set {LOCAL} (local) and {COMMON} (for all)",
            _set_parameters,
            f"SELECT count(*) FROM server_configuration WHERE name = '{COMMON}' AND read_only = 1",
            1,
        ),
    ]


def _measure(cluster: Cluster, step: Step) -> Measured:
    stopped = threading.Event()
    watchers = [_Watcher(node, step, stopped) for node in cluster.secondaries]
    try:
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.asked.wait(10)
        started = time.perf_counter()
        with reported(step.title), engine(cluster.primary.url).begin() as connection:
            rows = step.change(connection)
        committed = time.perf_counter()
        lags = {watcher.node.name: _lag_ms(watcher, step, committed) for watcher in watchers}
    finally:
        stopped.set()
    return Measured(step.title, rows, (committed - started) * 1000, lags)


def _lag_ms(watcher: _Watcher, step: Step, committed: float) -> float:
    watcher.join(max(0.0, committed + ARRIVE_SECONDS - time.perf_counter()))
    if watcher.seen_at is None:
        raise DemoError(
            f"“{step.title}” was not seen on {watcher.node.name} within {ARRIVE_SECONDS:.0f} s; "
            f"the end of its log:\n{tail(watcher.node.log)}"
        )
    return max(0.0, watcher.seen_at - committed) * 1000


def _new_account(link: Connection, maker: Maker) -> int:
    rows: Rows = {
        "account": [maker.account("acme", "Treasury")],
        "virtual_user": [maker.login(f"acme.{number}", "acme") for number in range(2)],
        "site": [maker.site("acme", f"site-{number}") for number in range(2)],
        "certificate": [maker.certificate("acme")],
    }
    return load(link, rows)


def _import(link: Connection, maker: Maker) -> int:
    names = [_imported(number) for number in range(_IMPORTED)]
    accounts = [maker.account(name, "Payments") for name in names]
    return load(link, {"account": accounts, "virtual_user": [maker.login(f"{name}.0", name) for name in names]})


def _imported(number: int) -> str:
    return f"import-{number:05d}"


def _set_parameters(link: Connection) -> int:
    local = _run(link, _SET_PARAMETER, name=LOCAL, settings='["of the primary alone"]')
    return local + _run(link, _SET_PARAMETER, name=COMMON, settings='["for every node"]')


def _leaf(rows: Rows) -> str:
    """A unit without units below it, which accounts refer to."""
    parents = {row["parent"] for row in rows["business_unit"]}
    used = {row["business_unit"] for row in rows["account"]}
    return str(next(row["name"] for row in rows["business_unit"] if row["name"] not in parents and row["name"] in used))


def _run(link: Connection, statement: str, **values: Any) -> int:
    return link.execute(text(statement), values).rowcount
