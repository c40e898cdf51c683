"""One binding, queue or exchange that is gone while everything else goes on is noticed and declared again (TRAPS 11, 18)."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.faults.conftest import frozen, wait_running, wait_told
from tests.faults.test_broker_loss import ONE_AHEAD, TOPOLOGY, do, purged, saves, standing
from tests.harness import Cluster, Node
from tests.integration.conftest import MakeCluster

QUICK = "[intervals]\nheartbeat_s = 0.2\ncatch_up_retry_s = 0.3\noffline_after_s = 2.0\n"
EVENTS, DIRECT, REPORTS = TOPOLOGY.events_exchange, TOPOLOGY.direct_exchange, TOPOLOGY.reports_exchange
QUEUE = TOPOLOGY.node_queue("st2")


@pytest.fixture
def running(new_cluster: MakeCluster, vhost_url: str) -> Cluster:
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=("st1", "st2"), settings=QUICK)
    cluster.start()
    wait_running(*cluster.nodes.values())
    saves(cluster.primary, 0, 2)
    cluster.wait_equal()
    return cluster


def states(cluster: Cluster) -> str:
    return "\n".join(f"{node.status()}\n{node.log[-2000:]}" for node in cluster.nodes.values())


def lose_a_gap(cluster: Cluster, url: str) -> None:
    """What is saved now reaches the broker, and no node."""
    do(url, lambda channel: channel.queue_unbind(QUEUE, EVENTS, ""))
    saves(cluster.primary, 10, 2)
    wait_told(lambda: cluster.primary.status()["published"] == cluster.primary.sequence(), lambda: states(cluster))


def direct_unbound(channel: Any) -> None:
    channel.queue_unbind(QUEUE, DIRECT, "st2")


def direct_gone(channel: Any) -> None:
    channel.exchange_delete(DIRECT)


@pytest.mark.parametrize("loss", [direct_unbound, direct_gone])
def test_answers_that_do_not_arrive_are_noticed_though_heartbeats_do(
    running: Cluster, vhost_url: str, loss: Callable[[Any], None]
) -> None:
    """TRAPS 18: the binding for answers is gone and the broker drops them, confirmed; there is a gap, and nothing else is amiss."""
    do(vhost_url, loss)
    lose_a_gap(running, vhost_url)
    do(vhost_url, lambda channel: channel.queue_bind(QUEUE, EVENTS, ""))
    running.wait_equal(20)
    node = running.nodes["st2"]
    wait_told(lambda: node.status()["state"] == "in_sync", lambda: states(running), 20)
    assert sum(node.status()["refused"].values()) == 0
    assert node.log.count("catch_up_asked") == 1


def deleted(channel: Any) -> None:
    channel.queue_delete(TOPOLOGY.reports_queue)


def unbound(channel: Any) -> None:
    channel.queue_unbind(TOPOLOGY.reports_queue, REPORTS, "")


def events_gone(channel: Any) -> None:
    channel.exchange_delete(EVENTS)


def reports_gone(channel: Any) -> None:
    channel.exchange_delete(REPORTS)


@pytest.mark.parametrize("loss", [deleted, unbound, reports_gone, events_gone])
def test_what_is_lost_on_the_primarys_side_comes_back(running: Cluster, vhost_url: str, loss: Callable[[Any], None]) -> None:
    """TRAPS 11, 18: batches arrive, reports are heard, and a gap heals, which needs requests to be heard, too."""
    primary, node = running.primary, running.nodes["st2"]
    do(vhost_url, loss)
    if loss is events_gone:
        saves(primary, 10, 2)
    else:
        lose_a_gap(running, vhost_url)
        do(vhost_url, lambda channel: channel.queue_bind(QUEUE, EVENTS, ""))
    running.wait_equal(20)
    wait_told(lambda: reported(primary) == ("in_sync", primary.sequence()), lambda: states(running), 20)
    for one in (primary, node):
        assert one.process is not None
        assert one.process.poll() is None, one.log[-3000:]
        assert one.status()["refused"] == {}


def test_requests_that_are_purged_before_the_primary_took_them_come_again(running: Cluster, vhost_url: str) -> None:
    """TRAPS 11: with the reports that stand among them; the primary is slow, and the node knows of the gap by a heartbeat."""
    primary, node = running.primary, running.nodes["st2"]
    for one in (primary, node):
        assert one.stop() == 0
        one.start(ONE_AHEAD)
    wait_running(primary, node)
    assert primary.process is not None
    assert node.process is not None
    with ExitStack() as slow:
        with frozen(node.process):
            lose_a_gap(running, vhost_url)
            purged(vhost_url, QUEUE)
            do(vhost_url, lambda channel: channel.queue_bind(QUEUE, EVENTS, ""))
            wait_told(lambda: standing(vhost_url, QUEUE), lambda: "a heartbeat")
            slow.enter_context(frozen(primary.process))
            assert "catch_up_asked" not in node.log
        wait_told(lambda: "catch_up_asked" in node.log, lambda: node.log[-2000:])
        reports = TOPOLOGY.reports_queue
        wait_told(lambda: standing(vhost_url, reports) >= 3, lambda: standing(vhost_url, reports))
        assert purged(vhost_url, reports) >= 3
        assert node.sequence() < primary.sequence()
    running.wait_equal(20)
    wait_told(lambda: reported(primary) == ("in_sync", primary.sequence()), lambda: states(running), 20)
    assert [one.status()["refused"] for one in (primary, node)] == [{}, {}]


def reported(primary: Node) -> tuple[str, int]:
    found = primary.status()["nodes"][0]
    return found["state"], found["sequence"]
