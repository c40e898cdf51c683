"""A database restored from a backup: a primary's makes the secondaries say so, a secondary's catches up (TRAPS 7, 12, 34)."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from psycopg import sql

from deploy.servers import PrivatePostgreSQL
from tests.faults.conftest import wait_running, wait_told
from tests.faults.test_broker_loss import drained, saves
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster

QUICK = "[intervals]\nheartbeat_s = 0.2\ncatch_up_retry_s = 0.3\n"
LOST = 3


def told(cluster: Cluster) -> str:
    return "\n".join(f"{json.dumps(one.status())}\n{one.log[-2500:]}" for one in cluster.nodes.values())


def batches(primary: Node, first: int, count: int) -> None:
    """So many batches, each of one change."""
    for number in range(first, first + count):
        saves(primary, number, 1)
        wait_for(lambda: drained(primary), "a change set of its own")


def back_up(node: Node, to: Path) -> None:
    """As an administrator does, while the service runs."""
    source, target = sqlite3.connect(node.url.removeprefix("sqlite:///")), sqlite3.connect(to)
    source.backup(target)
    source.close()
    target.close()


def restore(node: Node, backup: Path) -> None:
    assert node._engine is not None
    node._engine.dispose()
    database = Path(node.url.removeprefix("sqlite:///"))
    for rest in ("-wal", "-shm"):
        Path(f"{database}{rest}").unlink(missing_ok=True)
    shutil.copyfile(backup, database)


@pytest.fixture
def cluster(new_cluster: MakeCluster) -> Cluster:
    made = new_cluster("sqlite", nodes=("st1", "st2"), settings=QUICK)
    made.start()
    wait_running(*made.nodes.values())
    batches(made.primary, 0, 2)
    made.wait_equal()
    return made


@pytest.mark.parametrize("written", [0, LOST - 1, LOST, LOST + 2], ids=["nothing", "fewer", "as many", "more"])
@pytest.mark.parametrize("meanwhile", ["runs", "is stopped"])
def test_a_restored_primary_makes_its_secondaries_ask_for_a_full_synchronization(
    cluster: Cluster, tmp_path: Path, written: int, meanwhile: str
) -> None:
    """TRAPS 34: whatever the restored one writes then; nothing of the other history is applied."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    back_up(primary, tmp_path / "backup.db")
    batches(primary, 100, LOST)
    cluster.wait_equal()
    position = node.sequence()
    rows = node.rows("SELECT id FROM unit ORDER BY id")
    if meanwhile == "is stopped":
        assert node.stop() == 0
    assert primary.stop() == 0
    restore(primary, tmp_path / "backup.db")
    batches_before_the_start(primary, written)
    primary.start()
    wait_for(lambda: drained(primary), "all of it sequenced")
    if meanwhile == "is stopped":
        wait_running(primary)
        node.start()
    wait_told(lambda: node.status()["state"] == "needs_full_sync", lambda: told(cluster), 20)
    wait_told(lambda: primary.status()["nodes"][0]["state"] == "needs_full_sync", lambda: told(cluster), 20)
    assert "restored from a backup" in node.status()["reason"]
    assert (node.sequence(), node.rows("SELECT id FROM unit ORDER BY id")) == (position, rows)
    batches(primary, 300, 2)
    assert node.status()["state"] == "needs_full_sync"


def batches_before_the_start(primary: Node, count: int) -> None:
    """One batch each: the service drains between them."""
    if count:
        primary.start()
        batches(primary, 200, count)
        assert primary.stop() == 0


def test_a_restored_primary_on_postgresql_is_found_out(new_cluster: MakeCluster, postgresql: PrivatePostgreSQL) -> None:
    """TRAPS 34: its database made anew from a template; it then writes as many batches as were lost."""
    cluster = new_cluster("postgresql", nodes=("st1", "st2"), settings=QUICK)
    primary, node = cluster.primary, cluster.nodes["st2"]
    name = primary.url.rpartition("/")[2]
    cluster.start()
    wait_running(primary, node)
    batches(primary, 0, 2)
    cluster.wait_equal()
    assert primary.stop() == 0
    primary.engine.dispose()
    live, backup, owner = (sql.Identifier(one) for one in (name, f"{name}_backup", postgresql.user))
    postgresql._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(backup, live, owner))
    primary.start()
    batches(primary, 100, LOST)
    cluster.wait_equal()
    position = node.sequence()
    assert primary.stop() == 0
    primary.engine.dispose()
    postgresql.drop_database(primary.url)
    postgresql._execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(backup, live))
    primary.start()
    batches(primary, 200, LOST)
    wait_told(lambda: node.status()["state"] == "needs_full_sync", lambda: told(cluster), 30)
    assert "restored from a backup" in node.status()["reason"]
    assert node.sequence() == position
    assert not node.rows("SELECT 1 FROM unit WHERE id >= 200")


def test_a_restored_secondary_catches_up(cluster: Cluster, tmp_path: Path) -> None:
    """TRAPS 7: its position was restored with its rows."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    back_up(node, tmp_path / "backup.db")
    batches(primary, 100, LOST)
    cluster.wait_equal()
    assert node.stop() == 0
    restore(node, tmp_path / "backup.db")
    assert cluster.differences()
    node.start()
    cluster.wait_equal(20)
    wait_told(lambda: primary.status()["nodes"][0]["state"] == "in_sync", lambda: told(cluster), 20)
    assert node.status()["reason"] is None
    assert node.status()["refused"] == {}
    assert primary.status()["refused"] == {}
