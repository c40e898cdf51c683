"""Batches that the broker hands over in another order than that of the log are applied in the log's order, once each."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.conftest import assert_whole, wait_running, wait_told
from tests.faults.test_broker_loss import TOPOLOGY, do, drained, purge, saves
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster

NODES = ("st1", "st2")
DEBUG = "[log]\nlevel = 'debug'\n"
EACH_NEEDS_THE_ONE_BEFORE = (
    ("INSERT INTO unit VALUES (100, 'first', NULL)",),
    ("UPDATE unit SET name = 'second', parent = 0 WHERE id = 100",),
    ("DELETE FROM unit WHERE id = 100", "INSERT INTO unit VALUES (101, 'second', 0)"),
    ("INSERT INTO unit VALUES (100, 'first', 101)",),
)


def published_past(cluster: Cluster, url: str, change_sets: Sequence[Sequence[str]]) -> list[bytes]:
    """What st2 has missed, in the log's order: its queue is empty, and nobody is there who would answer a catch-up."""
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    wait_running(primary, node)
    saves(primary, 0, 1)
    cluster.wait_equal()
    assert node.stop() == 0
    for statements in change_sets:
        primary.execute(*statements)
        wait_for(lambda: drained(primary), "a change set of its own")
    wait_told(lambda: primary.status()["published"] == primary.sequence(), primary.status)
    assert primary.stop() == 0
    do(url, purge)
    missed = "SELECT message FROM stsync_journal WHERE sequence > :stood ORDER BY sequence"
    return [bytes(message) for (message,) in primary.rows(missed, stood=node.sequence())]


def into_the_queue(url: str, messages: Sequence[bytes]) -> None:
    def publish(channel: Any) -> None:
        channel.confirm_delivery()
        for message in messages:
            channel.basic_publish("", TOPOLOGY.node_queue("st2"), message)

    do(url, publish)


def logged(node: Node, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in node.log.splitlines() if f'"{event}"' in line]
    return [one for one in lines if one["event"] == event]


def applied_since(node: Node, stood: int) -> list[tuple[int, int]]:
    """The position after each transaction up to where the node is now, and how many change sets it applied."""
    now = node.sequence()
    wait_told(lambda: any(one["sequence"] == now for one in logged(node, "applied")), lambda: node.log[-3000:], 20)
    return [(one["sequence"], one["units"]) for one in logged(node, "applied") if one["sequence"] > stood]


def assert_applied_once(cluster: Cluster, stood: int, change_sets: int) -> None:
    """All of them, each once and in order; nothing was refused or put aside; and so it stays when the primary is there again."""
    primary, node = cluster.primary, cluster.nodes["st2"]
    cluster.wait_equal(20)
    applied = applied_since(node, stood)
    assert sum(units for _, units in applied) == change_sets
    assert applied == sorted(applied)
    status = node.status()
    assert (status["sequence"], status["refused"]) == (primary.sequence(), {})
    assert node.rows("SELECT table_name, kind, key_json, reason FROM stsync_quarantine") == []
    primary.start()
    wait_running(primary)
    saves(primary, 500, 1)
    assert_whole(cluster)
    assert sum(units for _, units in applied_since(node, stood)) == change_sets + 1


@pytest.mark.parametrize("arrival", [(4, 2, 3, 1), (4, 2, 2, 3, 1)], ids=["each once", "one twice while it waits"])
def test_batches_in_another_order_are_applied_in_the_logs_order(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str, arrival: tuple[int, ...]
) -> None:
    """TRAPS 8, 10: what comes too early waits for what is before it; what waits already may come again."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, nodes=NODES, settings=DEBUG)
    missed = published_past(cluster, vhost_url, EACH_NEEDS_THE_ONE_BEFORE)
    assert len(missed) == len(EACH_NEEDS_THE_ONE_BEFORE)
    node = cluster.nodes["st2"]
    stood = node.sequence()
    node.start()
    wait_running(node)
    into_the_queue(vhost_url, [missed[place - 1] for place in arrival])
    assert_applied_once(cluster, stood, len(missed))
    assert node.rows("SELECT id, name, parent FROM unit WHERE id BETWEEN 100 AND 101 ORDER BY id") == [
        (100, "first", 101),
        (101, "second", 0),
    ]


def test_a_change_set_of_many_batches_may_come_last_batch_first(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 1, 10: nothing of it is applied before its first batch is there, then all of it at once."""
    small = DEBUG + "[relay]\nbatch_bytes = 1024\n"
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=NODES, settings=small)
    chance = random.Random(4)
    notes = [f"INSERT INTO account VALUES ({one}, 'a{one}', 0, '{chance.randbytes(200).hex()}', NULL)" for one in range(20)]
    first, *later = published_past(cluster, vhost_url, [notes])
    assert len(later) >= 3
    node = cluster.nodes["st2"]
    stood = node.sequence()
    node.start()
    wait_running(node)
    into_the_queue(vhost_url, later[::-1])
    wait_told(
        lambda: [one for one in logged(node, "catch_up_asked") if one["first"] == stood + 1],
        lambda: f"the first batch asked for\n{node.log[-3000:]}",
        20,
    )
    assert node.sequence() == stood
    assert node.rows("SELECT id FROM account") == []
    into_the_queue(vhost_url, [first])
    assert_applied_once(cluster, stood, 1)
