"""The clusters of the integration tests, for faults: a running one on each database, or one that a test starts itself."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import pytest
from sqlalchemy import text

from deploy.servers.processes import descendants
from tests.conftest import KINDS
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster, new_cluster

__all__ = ["assert_whole", "cluster", "edit_here", "frozen", "mostly", "new_cluster", "wait_running", "wait_told"]


def mostly(kind: str) -> pytest.MarkDecorator:
    """Each database in turn; the ones beside this, where little depends on which it is, in the long run only."""
    kinds = [one if one == kind else pytest.param(one, marks=pytest.mark.long) for one in KINDS]
    return pytest.mark.parametrize("database_kind", kinds)


def wait_told(condition: Callable[[], Any], told: Callable[[], object], timeout_s: float = 60.0) -> None:
    """As wait_for; what did not come is told as it is at the end of the time."""
    wait_for(condition, told, timeout_s)  # type: ignore[arg-type]


def wait_running(*nodes: Node) -> None:
    """Until the last start of each node's service consumes from the broker."""
    for node in nodes:
        wait_told(partial(_runs, node), partial(_last_words, node))


def _last_words(node: Node) -> str:
    return f"{node.name} consumes\n{node.log[-3000:]}"


def wait_arrived(cluster: Cluster, timeout_s: float = 60.0) -> None:
    """Until every node is at the primary's sequence; rows need not be equal."""
    wait_told(
        lambda: (
            not cluster.primary.rows("SELECT 1 FROM stsync_outbox")
            and len({node.sequence() for node in cluster.nodes.values()}) == 1
        ),
        lambda: {node.name: (node.sequence(), node.log[-2000:]) for node in cluster.nodes.values()},
        timeout_s,
    )


def assert_whole(cluster: Cluster, timeout_s: float = 90.0) -> None:
    """All nodes equal, their services alive, no hole in the journal, one history, nothing quarantined, no alarm (TRAPS 34), and
    nothing captured where it was only replayed (TRAPS 5): a test that edits a secondary has to forget that (`edit_here`)."""
    cluster.wait_equal(timeout_s)
    head = cluster.primary.sequence()
    journal = cluster.primary.rows("SELECT max(sequence), max(sequence) - min(sequence) + 1 - count(*) FROM stsync_journal")
    assert journal == [(head, 0)], "the journal's end, and how many batches it lacks"
    for node in cluster.nodes.values():
        assert node.rows("SELECT table_name, kind, key_json, reason FROM stsync_quarantine") == []
        assert node.rows("SELECT kind, source, text FROM stsync_refusals") == [], node.name
        assert node.rows("SELECT reason FROM stsync_node WHERE state IN ('refused', 'needs_full_sync')") == []
        assert node.process is not None
        assert node.process.poll() is None, node.log[-3000:]
    for node in cluster.secondaries:
        assert node.rows("SELECT table_name, kind, rows_json FROM stsync_outbox") == [], f"captured on {node.name}"
    hashes = {node.name: bytes(node.rows("SELECT hash FROM stsync_node")[0][0]) for node in cluster.nodes.values()}
    assert len(set(hashes.values())) == 1, hashes


def edit_here(node: Node, statement: str) -> None:
    """What a program of a secondary does there; what is captured of it, one change, is forgotten."""
    with node.engine.begin() as connection:
        connection.execute(text(statement))
        assert connection.execute(text("DELETE FROM stsync_outbox")).rowcount == 1, statement


def _runs(node: Node) -> bool:
    assert node.process is not None
    assert node.process.poll() is None, f"{node.name} ended with {node.process.returncode}\n{node.log[-3000:]}"
    return '"state": "ready", "reason": null, "event": "broker_consume"' in node.words


class HasPid(Protocol):
    """A server, or a node's service."""

    @property
    def pid(self) -> int: ...


@contextmanager
def frozen(running: HasPid) -> Iterator[None]:
    """It says nothing for a while, with all its processes."""
    processes = [running.pid, *descendants(running.pid)]

    def signal_all(number: signal.Signals) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):  # a child whose client is gone ends at once
                os.kill(pid, number)

    try:
        signal_all(signal.SIGSTOP)
        yield
    finally:
        signal_all(signal.SIGCONT)


@pytest.fixture
def cluster(new_cluster: MakeCluster, database_kind: str) -> Cluster:
    """A running cluster of three on each database in turn; every node consumes."""
    found = new_cluster(database_kind, settings="[replay]\nretry_quarantine_s = 0.5\n")
    found.start()
    wait_running(*found.nodes.values())
    return found
