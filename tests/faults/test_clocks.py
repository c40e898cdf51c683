"""A wrong clock stops nothing: order and replay protection rest on numbers, and the skew is told (TRAPS 34)."""

import json
from typing import Any

import pytest

from tests.faults.conftest import wait_running, wait_told
from tests.faults.test_broker_loss import do, drained, purge, saves
from tests.harness import Node, wait_for
from tests.integration.conftest import MakeCluster

TEN_MINUTES, A_DAY = 600, 86_400
NODES = ("st1", "st2")


def warned(node: Node, of: str) -> list[str]:
    found: list[str] = [one for one in node.status()["warnings"] if f"clock of {of}" in one]
    return found


def told(*nodes: Node) -> str:
    return "\n".join(f"--- {node.name} {json.dumps(node.status())}\n{node.log[-3000:]}" for node in nodes)


@pytest.mark.parametrize(("name", "off"), [("st1", -TEN_MINUTES), ("st1", A_DAY), ("st2", -A_DAY), ("st2", TEN_MINUTES)])
def test_a_wrong_clock_on_either_side_is_no_outage(new_cluster: MakeCluster, vhost_url: str, name: str, off: int) -> None:
    """TRAPS 9, 11, 34: batches arrive, a gap heals from the journal, a lost tail is found by heartbeats, the skew is told."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=NODES, settings="[intervals]\nheartbeat_s = 0.2\n")
    primary, node = cluster.primary, cluster.nodes["st2"]
    cluster.nodes[name].turn_clock(off)
    cluster.start()
    wait_running(primary, node)
    saves(primary, 0, 2)
    cluster.wait_equal()
    assert node.stop() == 0
    saves(primary, 10, 2)
    wait_told(lambda: drained(primary), lambda: told(primary))
    do(vhost_url, purge)
    node.start()
    cluster.wait_equal(30)  # nothing more is published: only a heartbeat tells
    wait_told(lambda: status_of(primary) == "in_sync", lambda: told(primary, node), 30)
    wait_told(lambda: node.status()["state"] == "in_sync", lambda: told(primary, node), 30)
    wait_told(lambda: warned(primary, "st2") and warned(node, "st1"), lambda: told(primary, node), 30)
    ahead = "ahead of" if (off > 0) == (name == "st2") else "behind"
    assert f"{ahead} this node's" in warned(primary, "st2")[0]
    assert f"{'behind' if ahead == 'ahead of' else 'ahead of'} this node's" in warned(node, "st1")[0]
    saves(primary, 20, 1)
    cluster.wait_equal(30)
    assert 0 <= node.status()["lag_ms"] < 30_000, node.status()
    assert node.log.count("clock_differs") == 1, node.log
    (numbered,), (heard,) = (
        primary.rows("SELECT numbered FROM stsync_node")[0],
        node.rows("SELECT heard_number FROM stsync_node")[0],
    )
    assert (
        numbered - 10**7 <= heard < numbered
    )  # in the range that was reserved for heartbeats, and written down, before the first


def status_of(primary: Node) -> Any:
    return primary.status()["nodes"][0]["state"]


def test_a_clock_that_is_set_while_the_services_run_is_no_outage(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34: forward and back, on either side; and what an earlier run found of the clocks is known to the next."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=NODES, settings="[intervals]\nheartbeat_s = 0.2\n")
    primary, node = cluster.primary, cluster.nodes["st2"]
    for one in (primary, node):
        one.turn_clock(0)
    cluster.start()
    wait_running(primary, node)
    for turn, (one, off) in enumerate([(primary, A_DAY), (node, -A_DAY), (node, 0), (primary, -A_DAY)]):
        one.turn_clock(off)
        saves(primary, 10 * turn, 1)
        cluster.wait_equal(20)
    wait_told(  # not what was told after an earlier turn
        lambda: "behind" in "".join(warned(node, "st1")) and "ahead" in "".join(warned(primary, "st2")),
        lambda: told(primary, node),
        30,
    )
    assert node.stop() == 0
    before = node.status()["refused"].get("expired", 0)
    node.start()
    wait_running(node)
    wait_told(lambda: node.status()["state"] == "in_sync", lambda: told(node), 30)
    saves(primary, 100, 1)
    cluster.wait_equal(20)
    assert node.status()["refused"].get("expired", 0) == before
    for one in (primary, node):
        one.turn_clock(0)
    wait_told(lambda: not node.status()["warnings"] and not primary.status()["warnings"], lambda: told(primary, node), 30)


def test_a_clock_that_leaps_forward_prunes_nothing_that_a_secondary_lacks(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str
) -> None:
    """TRAPS 12, 34: a month ahead everything in the journal seems old; a secondary that is away catches up all the same."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, nodes=NODES, settings="[journal]\nprune_every_s = 0.1\n")
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.turn_clock(0)
    cluster.start()
    wait_running(primary, node)
    saves(primary, 0, 1)
    cluster.wait_equal()
    wait_told(lambda: primary.status()["nodes"][0]["sequence"] == 1, lambda: told(primary))
    assert node.stop() == 0
    saves(primary, 10, 1)
    wait_for(lambda: drained(primary), "a change set of its own")
    saves(primary, 20, 1)
    wait_told(lambda: primary.status()["published"] == 3, lambda: told(primary))
    primary.turn_clock(30 * A_DAY)
    wait_told(lambda: primary.status()["journal"]["first"] == 2, lambda: told(primary), 20)
    do(vhost_url, purge)
    node.start()
    cluster.wait_equal(30)
    wait_told(lambda: primary.status()["journal"]["first"] == 3, lambda: told(primary))  # now nobody lacks it


def test_a_clock_that_is_set_back_shows_no_dead_node_as_in_sync(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34: what was heard at a time that is still to come was not heard lately."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=NODES)
    primary, node = cluster.primary, cluster.nodes["st2"]
    for one in (primary, node):
        one.turn_clock(0)
    cluster.start()
    wait_running(primary, node)
    wait_told(lambda: status_of(primary) == node.status()["state"] == "in_sync", lambda: told(primary, node))
    node.kill()
    primary.turn_clock(-A_DAY)
    found = primary.status()["nodes"][0]
    assert found["state"] == "offline"
    assert "clock was set back" in found["reason"]
    assert "ahead" in primary.command("status").stdout
    node.start()
    wait_told(lambda: status_of(primary) == "in_sync", lambda: told(primary, node), 30)
    primary.kill()
    node.turn_clock(-A_DAY)
    found = node.status()
    assert found["state"] == "catching_up"
    assert "clock was set back" in found["reason"]
