"""Whatever the broker loses or does not do, writers on the primary do not notice, and every gap heals from the journal."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from common.topology import Topology
from deploy.servers import PrivateRabbitMQ
from tests.faults.conftest import assert_whole, frozen, mostly, wait_arrived, wait_running, wait_told
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster
from tests.workload import pause, writing

SETTLE_S = 2.5  # RabbitMQ 3.10 loses a quorum queue that was declared just before a kill (deploy/servers)
TOPOLOGY = Topology("mft", ("st1", "st2", "st3"), "st1")
SMALL_JOURNAL = "[journal]\nmax_bytes = 65536\nprune_every_s = 0.2\n"
# No writer's statement waits so long for anything of ours: whoever waits for a broker does so for a heartbeat (5 s at least).
# A save on SQLite waits for up to four fsyncs, the relay's commit among them, each up to 0.45 s on a disk that others load.
BLOCKED_S = 2.0
ONE_AHEAD = {"STSYNC_BROKER__PREFETCH": "1"}  # all but one message stand in the queue until they are taken
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Saved:
    """How long transactions took."""

    median_s: float
    slowest_s: float


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this module's own, which may be stopped and wiped."""
    with PrivateRabbitMQ(servers_root / "rabbitmq-lost", fast=True) as server:
        yield server


def saves(node: Node, first: int, count: int) -> Saved:
    """So many transactions."""
    took = []
    for number in range(first, first + count):
        began = time.monotonic()
        node.execute(f"INSERT INTO unit VALUES ({number}, 'unit {number}', NULL)")
        took.append(time.monotonic() - began)
    return Saved(median(took), max(took))


def started(cluster: Cluster) -> Cluster:
    cluster.start()
    wait_running(*cluster.nodes.values())
    until = time.monotonic() + SETTLE_S
    wait_for(lambda: time.monotonic() > until, "queues that the broker keeps")
    return cluster


def drained(node: Node) -> bool:
    return not node.rows("SELECT 1 FROM stsync_outbox")


@mostly("mariadb")
def test_writers_do_not_notice_that_the_broker_is_away(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str
) -> None:
    """TRAPS 8, 11: what they save goes into the journal, and on from there when the broker is back."""
    cluster = started(new_cluster(database_kind, broker_url=broker.new_vhost()))
    primary = cluster.primary
    before = saves(primary, 0, 60)
    cluster.wait_equal()
    broker.stop()
    try:
        meanwhile = saves(primary, 1000, 200)
        wait_for(lambda: drained(primary), "the outbox drained into the journal", 20)
        assert meanwhile.slowest_s < BLOCKED_S
        assert meanwhile.median_s < max(3 * before.median_s, 0.05)
        status = primary.status()
        assert (status["sequence"], status["outbox"]) == (status["journal"]["last"], 0)
        assert status["published"] < status["sequence"]
    finally:
        broker.start()
    cluster.wait_equal()
    wait_told(lambda: primary.command("status").returncode == 0, primary.status)


@mostly("postgresql")
def test_a_dead_secondary_concerns_nobody_else(cluster: Cluster) -> None:
    """TRAPS 12: for two thousand changes; then it catches up."""
    primary, dead, other = cluster.primary, cluster.nodes["st2"], cluster.nodes["st3"]
    before = saves(primary, 0, 60)
    cluster.wait_equal()
    dead.kill()
    meanwhile = saves(primary, 1000, 2000)
    wait_told(
        lambda: drained(primary) and other.sequence() == primary.sequence(),
        lambda: (other.sequence(), other.log[-2000:]),
    )
    assert meanwhile.slowest_s < BLOCKED_S
    assert meanwhile.median_s < max(3 * before.median_s, 0.05)
    wait_for(lambda: [one["state"] for one in primary.status()["nodes"]] == ["offline", "in_sync"], "st2 offline")
    assert primary.command("status").returncode == 1
    dead.start()
    cluster.wait_equal()


def delete(channel: Any, node: str = "st2") -> None:
    channel.queue_delete(TOPOLOGY.node_queue(node))


def purge(channel: Any, node: str = "st2") -> None:
    channel.queue_purge(TOPOLOGY.node_queue(node))


def unbind(channel: Any, node: str = "st2") -> None:
    for exchange, key in ((TOPOLOGY.events_exchange, ""), (TOPOLOGY.direct_exchange, node)):
        channel.queue_unbind(TOPOLOGY.node_queue(node), exchange, key)


def do(url: str, what: Callable[[Any], Answer]) -> Answer:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        return what(connection.channel())
    finally:
        connection.close()


@contextmanager
def suppress_missing() -> Iterator[None]:
    """What has just been deleted may not have been declared again."""
    try:
        yield
    except ChannelClosedByBroker as exc:
        if exc.reply_code != 404:
            raise


def standing(url: str, queue: str) -> int:
    """How many messages of a queue nobody was given yet."""
    return do(url, lambda channel: int(channel.queue_declare(queue, passive=True).method.message_count))


def purged(url: str, queue: str) -> int:
    """How many messages are gone."""
    return do(url, lambda channel: int(channel.queue_purge(queue).method.message_count))


@mostly("mariadb")
@pytest.mark.parametrize("loss", [purge, delete, unbind])
@pytest.mark.parametrize("more", [True, False], ids=["next batch", "heartbeat"])
def test_a_queue_that_lost_messages_heals(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str, loss: Callable[[Any], None], more: bool
) -> None:
    """TRAPS 9, 10, 11, 18: the gap is seen at the next batch, or where none comes by the heartbeat."""
    cluster = new_cluster(database_kind, broker_url=vhost_url)
    cluster.start()
    wait_running(*cluster.nodes.values())
    primary, node, other = cluster.primary, cluster.nodes["st2"], cluster.nodes["st3"]
    saves(primary, 0, 5)
    cluster.wait_equal()
    node.kill()
    if loss is unbind:
        do(vhost_url, loss)
    saves(primary, 100, 20)
    wait_for(lambda: drained(primary) and other.sequence() == primary.sequence(), "the changes published")
    if loss is not unbind:
        do(vhost_url, loss)
    node.start()
    if more:
        saves(primary, 200, 1)
    cluster.wait_equal(30)
    assert sum(node.status()["refused"].values()) == 0


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_smallest_window_serves_who_lags(new_cluster: MakeCluster, vhost_url: str, database_kind: str) -> None:
    """TRAPS 10, 11: a single message under way at a time, and yet both the newest and those that are asked for."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, nodes=("st1", "st2"))
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.start({"STSYNC_BROKER__WINDOW": "1"})
    node.start()
    wait_running(primary, node)
    saves(primary, 0, 5)
    cluster.wait_equal()
    node.kill()
    saves(primary, 100, 20)
    wait_for(lambda: drained(primary), "the changes published")
    do(vhost_url, purge)
    node.start()
    cluster.wait_equal(30)


@pytest.mark.parametrize("loss", [delete, unbind])
def test_a_queue_that_loses_messages_while_in_use_heals(
    new_cluster: MakeCluster, vhost_url: str, loss: Callable[[Any], None]
) -> None:
    """TRAPS 9, 11, 18: whoever hears nothing any more must find out why."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=("st1", "st2"))
    cluster.start()
    wait_running(*cluster.nodes.values())
    saves(cluster.primary, 0, 5)
    cluster.wait_equal()
    do(vhost_url, loss)
    saves(cluster.primary, 100, 5)
    cluster.wait_equal(45)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_losses_at_any_moment_heal(new_cluster: MakeCluster, vhost_url: str, database_kind: str, seed: int) -> None:
    """TRAPS 9, 10, 11, 18: one after the other, of any queue, while programs write and nodes take from it."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, settings="[intervals]\noffline_after_s = 1.0\n")
    cluster.start()
    wait_running(*cluster.nodes.values())
    chance = random.Random(seed)
    with writing(cluster.primary, seed) as writers:
        for _ in range(6):
            pause(chance, writers)
            lose = partial(chance.choice([purge, delete, unbind]), node=chance.choice(["st2", "st3"]))
            with suppress_missing():
                do(vhost_url, lose)
    assert_whole(cluster)


def test_a_queue_that_is_purged_while_in_use_heals(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 9, 11: batches stand in it, for its consumer is slow."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=("st1", "st2"))
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.start()
    node.start(ONE_AHEAD)
    wait_running(primary, node)
    saves(primary, 0, 5)
    cluster.wait_equal()
    stood = primary.sequence()
    assert node.process is not None
    with frozen(node.process):
        for number in range(100, 105):
            saves(primary, number, 1)
            wait_for(lambda: drained(primary), "the save in a batch of its own")
        wait_told(lambda: primary.status()["published"] == stood + 5, primary.status)
        queue = TOPOLOGY.node_queue("st2")
        wait_told(lambda: standing(vhost_url, queue) >= 4, lambda: standing(vhost_url, queue))
        assert purged(vhost_url, queue) >= 4
        assert "catch_up_asked" not in node.log
    cluster.wait_equal(45)
    assert "catch_up_asked" in node.log
    saves(primary, 200, 5)
    cluster.wait_equal(45)


@mostly("postgresql")
def test_a_wiped_broker_heals(new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str) -> None:
    """TRAPS 11, DESIGN 9: everything in it is lost, while changes go on."""
    cluster = started(new_cluster(database_kind, broker_url=broker.url()))
    saves(cluster.primary, 0, 20)
    cluster.wait_equal()
    cluster.nodes["st3"].kill()
    saves(cluster.primary, 100, 20)
    broker.wipe()
    saves(cluster.primary, 200, 20)
    cluster.nodes["st3"].start()
    broker.start()
    cluster.wait_equal()
    saves(cluster.primary, 300, 5)
    cluster.wait_equal()
    for node in cluster.nodes.values():
        assert node.process is not None
        assert node.process.poll() is None


def test_past_retention_a_full_synchronization_is_needed(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str
) -> None:
    """TRAPS 12: said by both nodes with the sequences, also after a restart; the others are not concerned."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, settings=SMALL_JOURNAL)
    cluster.start()
    wait_running(*cluster.nodes.values())
    primary, node, other = cluster.primary, cluster.nodes["st2"], cluster.nodes["st3"]
    saves(primary, 0, 3)
    cluster.wait_equal()
    stood = node.sequence()
    node.kill()
    chance = random.Random(60)  # what cannot be compressed
    for number in range(60):
        note = chance.randbytes(3000).hex()
        primary.execute(f"INSERT INTO account VALUES ({number}, 'a{number}', NULL, '{note}', NULL)")
        wait_for(lambda: drained(primary), "a change set of its own")
    wait_for(lambda: primary.status()["journal"]["first"] > stood + 1, "the journal pruned")
    wait_for(lambda: other.sequence() == primary.sequence(), "the other one")
    do(vhost_url, purge)
    node.start()
    wait_told(lambda: node.status()["state"] == "needs_full_sync", node.status)
    wait_told(lambda: primary.status()["nodes"][0]["state"] == "needs_full_sync", primary.status)
    for reason in (node.status()["reason"], primary.status()["nodes"][0]["reason"]):
        assert f"sequence {stood}" in reason
        assert "journal begins at" in reason
    assert node.sequence() == stood
    assert node.stop() == 0
    node.start()
    wait_running(node)
    saves(primary, 100, 3)
    wait_for(lambda: drained(primary) and other.sequence() == primary.sequence(), "the other one goes on")
    assert node.status()["state"] == "needs_full_sync"
    wait_told(lambda: primary.status()["nodes"][1]["state"] == "in_sync", primary.status)  # as soon as it has reported
    assert json.loads(primary.command("status", "--json").stdout)["nodes"][1]["behind"] == 0


def test_what_stands_in_the_queue_serves_a_node_past_the_journals_retention(
    new_cluster: MakeCluster, vhost_url: str
) -> None:
    """TRAPS 11, 12: the journal is pruned, but the node's queue has everything: no full synchronization."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, settings=SMALL_JOURNAL, nodes=("st1", "st2"))
    cluster.start()
    wait_running(*cluster.nodes.values())
    primary, node = cluster.primary, cluster.nodes["st2"]
    saves(primary, 0, 3)
    cluster.wait_equal()
    stood = node.sequence()
    node.kill()
    for number in range(150):
        primary.execute(f"INSERT INTO unit VALUES ({100 + number}, 'more {number}', NULL)")
        wait_for(lambda: drained(primary), "a change set of its own")
    wait_for(lambda: primary.status()["journal"]["first"] > stood + 1, "the journal pruned")
    node.start()
    wait_arrived(cluster, 30)
    assert cluster.differences() == []


@pytest.mark.parametrize("lost", ["sequence = {before}", "sequence >= {before}"], ids=["a hole", "all that was due"])
def test_a_journal_with_a_hole_is_told_not_waited_on(new_cluster: MakeCluster, broker: PrivateRabbitMQ, lost: str) -> None:
    """TRAPS 12: what cannot be published any more makes the secondaries say so; the primary neither stops nor spins."""
    broker.start()
    cluster = started(new_cluster("sqlite", broker_url=broker.new_vhost(), nodes=("st1", "st2")))
    primary, node = cluster.primary, cluster.nodes["st2"]
    saves(primary, 0, 1)
    cluster.wait_equal()
    broker.stop()
    try:
        for number in range(10, 13):
            saves(primary, number, 1)
            wait_for(lambda: drained(primary), "the save in a batch of its own")
        primary.kill()
        head = primary.sequence()
        stood = node.sequence()
        primary.execute(f"DELETE FROM stsync_journal WHERE {lost.format(before=head - 1)}")
    finally:
        broker.start()
    primary.start()
    wait_told(lambda: node.status()["state"] == "needs_full_sync", node.status)
    wait_for(lambda: primary.log.count("unpublished_batches_missing") == 1, "the primary says so")
    if ">" in lost:
        saves(primary, 20, 1)
        wait_for(lambda: drained(primary), "the first after the hole")
    wait_for(lambda: primary.status()["published"] == primary.sequence() > stood, "what follows the hole is published")
    assert primary.log.count("unpublished_batches_missing") == 1
    assert "journal" in node.status()["reason"]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_secondary_that_hears_nothing_does_not_fill_its_log(new_cluster: MakeCluster, database_kind: str) -> None:
    """Its link is renewed again and again meanwhile (a binding may be gone), and that is no news."""
    cluster = new_cluster(database_kind, settings="[intervals]\noffline_after_s = 1.0\n[log]\nlevel = 'debug'")
    node = cluster.nodes["st2"]
    node.start()
    ready = '"state": "ready", "reason": null, "event": "broker_'
    wait_told(lambda: node.log.count(ready) == 3, lambda: node.log)
    before = node.log
    until = time.monotonic() + 6
    wait_told(lambda: time.monotonic() > until, lambda: node.log, 20)
    assert node.log == before
