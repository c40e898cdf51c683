"""A broker that lacks memory takes no messages: what it has goes on to the secondaries, no writer notices, and all of it arrives."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import text

from deploy.servers import PrivateRabbitMQ
from tests.faults.conftest import assert_whole, edit_here, wait_running, wait_told
from tests.faults.test_broker_loss import BLOCKED_S, TOPOLOGY, drained, saves, standing
from tests.harness import Cluster, Node, transaction, wait_for
from tests.integration.conftest import MakeCluster

LACKS = "lacks memory or disk"
SETTINGS = "[replay]\nretry_quarantine_s = 0.5\n[intervals]\noffline_after_s = 2.0\n"


@contextmanager
def memory_alarm(broker: PrivateRabbitMQ) -> Iterator[None]:
    broker.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")


def ready(cluster: Cluster, environment: dict[str, str] | None = None) -> Cluster:
    for node in cluster.nodes.values():
        node.start(environment or {})
    wait_running(*cluster.nodes.values())
    saves(cluster.primary, 0, 5)
    cluster.wait_equal()
    return cluster


def last_words(node: Node) -> str:
    return node.words[-2000:]


def blocked(node: Node) -> bool:
    return LACKS in node.words


def warned(node: Node) -> bool:
    return any(LACKS in one for one in node.status()["warnings"])


def published(node: Node) -> int:
    return int(node.rows("SELECT published FROM stsync_node")[0][0])


def test_an_alarm_stops_publishing_alone(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ) -> None:
    """TRAPS 16: no writer; `status` tells it; a secondary applies, acknowledges and retries what it has and what the broker has for
    it; at its end everything arrives in order."""
    url = rabbitmq.new_vhost()
    cluster = ready(new_cluster("sqlite", broker_url=url, settings=SETTINGS))
    primary, node, queue = cluster.primary, cluster.nodes["st2"], TOPOLOGY.node_queue("st2")
    edit_here(node, "INSERT INTO unit VALUES (999, 'unit 25', NULL)")
    with transaction(node) as holder:  # what replay needs, so that everything is still to be done when the alarm has come
        holder.execute(text("UPDATE unit SET name = 'held' WHERE id = 0"))
        for number in range(20, 30):
            saves(primary, number, 1)
            wait_for(lambda: drained(primary), "the save in a batch of its own")
        wait_told(lambda: published(primary) == primary.sequence(), primary.status)
        before = published(primary)
        with memory_alarm(rabbitmq):
            assert saves(primary, 100, 300).slowest_s < BLOCKED_S
            for one in (primary, node):
                wait_told(partial(blocked, one), partial(last_words, one))
            wait_told(partial(warned, primary), primary.status, 8)
            assert saves(primary, 400, 20).slowest_s < BLOCKED_S
            wait_for(lambda: drained(primary), "the outbox drained into the journal", 20)
            holder.rollback()
            wait_told(partial(warned, node), node.status, 8)
            wait_told(lambda: node.sequence() >= before, partial(last_words, node), 15)
            assert node.rows("SELECT count(*) FROM stsync_quarantine") == [(1,)]
            edit_here(node, "DELETE FROM unit WHERE id = 999")
            wait_told(lambda: not node.rows("SELECT 1 FROM stsync_quarantine"), partial(last_words, node))
            assert node.stop() == 0
            assert standing(url, queue) == 0, "what it has not acknowledged stands in its queue again"
            node.start()
            assert {before} == {published(primary), *(one.sequence() for one in cluster.secondaries)}
            assert primary.sequence() > before
            assert primary.command("status").returncode == 1
    assert_whole(cluster)
    wait_told(lambda: primary.command("status").returncode == 0, primary.status)
    wait_told(lambda: not warned(primary) and not warned(node), lambda: (primary.status(), node.status()), 8)


@pytest.mark.long
def test_an_alarm_that_outlasts_patience_loses_and_repeats_nothing(
    new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ
) -> None:
    """TRAPS 16, 34: links are given up and made anew, again and again; what comes twice because of that is no attack."""
    cluster = new_cluster("sqlite", broker_url=rabbitmq.new_vhost(), settings=SETTINGS)
    ready(cluster, {"STSYNC_BROKER__BLOCKED_TIMEOUT_S": "0.5"})
    primary = cluster.primary
    with memory_alarm(rabbitmq):
        saves(primary, 100, 30)
        wait_told(
            lambda: all(node.words.count("blocked_timeout_s") >= 2 for node in cluster.nodes.values()),
            lambda: {node.name: node.words[-1000:] for node in cluster.nodes.values()},
        )
    assert_whole(cluster)
