"""What an administrator does in the demo, in plain SQL as any program would, and how soon each secondary shows it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from deploy.demo.cluster import Cluster, Node
from deploy.demo.data import Maker
from deploy.demo.databases import engine, load, reported
from deploy.demo.errors import DemoError

ARRIVE_SECONDS = 120.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Step:
    """A change on the primary, and a question to each secondary whose answer shows that it is there."""

    title: str
    change: Callable[[Connection], int]
    question: str
    answer: Any
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a step took: rows touched, the primary's own commit, and commit → visible on each secondary."""

    title: str
    rows: int
    commit_ms: float
    lag_ms: Mapping[str, float]
    note: str = ""


def run_steps(cluster: Cluster, show: Callable[[Measured], None]) -> None:
    """Each step in turn; DemoError when one does not arrive, or when what must stay local travels."""
    for step in _steps(Maker()):
        show(_measure(cluster, step))
    show(_local_parameter(cluster))


def _steps(maker: Maker) -> list[Step]:
    rows = maker.rows()
    total = sum(map(len, rows.values()))
    gone = rows["subscription"][7]["id"]
    last = "SELECT count(*) FROM virtual_user WHERE login_name = 'import-02499.0'"
    count_new = (
        "SELECT (SELECT count(*) FROM virtual_user WHERE account = 'acme') + (SELECT count(*) FROM site WHERE account = 'acme')"
        " + (SELECT count(*) FROM certificate WHERE account = 'acme')"
    )
    return [
        Step(
            f"initial configuration, {total} rows in one transaction",
            lambda link: load(link, rows),
            "SELECT count(*) FROM server_configuration WHERE name = 'Parameter.299'",
            1,
        ),
        Step("new account: logins, sites, certificate", lambda link: _new_account(link, maker), count_new, 5),
        Step(
            "rename a business unit and all that refer to it",
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
        Step("import 5000 rows in one transaction", lambda link: _import(link, maker), last, 1),
        Step(
            "a server parameter for all nodes",
            lambda link: _set_parameter(link, "Parameter.001", "cluster-wide"),
            "SELECT count(*) FROM server_configuration WHERE name = 'Parameter.001' AND node = 'shown'",
            1,
        ),
    ]
