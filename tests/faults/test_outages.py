"""What stands between the nodes fails slowly or by halves: a broker in alarm or frozen, a network that cuts and swallows, a lock
that keeps a consumer waiting, a queue that overflows. Writers do not notice, and afterwards all nodes are equal."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from deploy.servers import PrivateRabbitMQ
from tests.conftest import KINDS
from tests.faults.conftest import assert_whole, frozen, mostly, wait_running, wait_told
from tests.faults.proxy import Proxy
from tests.faults.test_broker_loss import BLOCKED_S, drained, saves
from tests.harness import Cluster, transaction, wait_for
from tests.integration.conftest import MakeCluster
from tests.workload import more, writing

HEARTBEAT_S = 5  # the least that may be set
SHORT = MappingProxyType({"STSYNC_BROKER__HEARTBEAT_S": str(HEARTBEAT_S)})


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this module's own, which may be frozen and told that its disk is full."""
    with PrivateRabbitMQ(servers_root / "rabbitmq-outages", fast=True) as server:
        yield server


def ready(cluster: Cluster, environment: Mapping[str, str] = MappingProxyType({})) -> Cluster:
    for node in cluster.nodes.values():
        node.start(environment)
    wait_running(*cluster.nodes.values())
    return cluster


def side_by_side(new_cluster: MakeCluster, urls: Sequence[str]) -> list[Cluster]:
    """A running cluster on each database, for what takes its time whichever it is; each has applied something."""
    clusters = [
        ready(new_cluster(kind, broker_url=url, nodes=("st1", "st2")), SHORT) for kind, url in zip(KINDS, urls, strict=True)
    ]
    for cluster in clusters:
        saves(cluster.primary, 0, 10)
        cluster.wait_equal()
    return clusters


@contextmanager
def disk_alarm(broker: PrivateRabbitMQ) -> Iterator[None]:
    broker.ctl("set_disk_free_limit", "100000GB")
    try:
        yield
    finally:
        broker.ctl("set_disk_free_limit", "50MB")


@contextmanager
def impatient(broker: PrivateRabbitMQ) -> Iterator[None]:
    """It waits three seconds for an acknowledgement, and looks twice a second; else half an hour, and once a minute."""

    def set_(timeout_ms: int, tick_ms: int) -> None:
        values = f"[{{consumer_timeout, {timeout_ms}}}, {{channel_tick_interval, {tick_ms}}}]"
        broker.ctl("eval", f"[application:set_env(rabbit, K, V) || {{K, V}} <- {values}].")

    set_(3_000, 500)
    try:
        yield
    finally:
        set_(1_800_000, 60_000)


@mostly("mariadb")
def test_a_broker_whose_disk_is_full_stops_no_writer(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str
) -> None:
    """TRAPS 16: the journal takes what the broker does not, the log says why, and it goes on by itself."""
    cluster = ready(new_cluster(database_kind, broker_url=broker.new_vhost()))
    primary = cluster.primary
    saves(primary, 0, 10)
    cluster.wait_equal()
    with disk_alarm(broker):
        assert saves(primary, 100, 300).slowest_s < BLOCKED_S
        wait_for(lambda: drained(primary), "the outbox drained into the journal", 20)
        wait_told(lambda: "lacks memory or disk" in primary.log, lambda: primary.log[-2000:])
        status = primary.status()
        assert status["published"] < status["sequence"] == status["journal"]["last"]
    assert_whole(cluster)


def test_a_frozen_broker_stops_no_writer(new_cluster: MakeCluster, broker: PrivateRabbitMQ) -> None:
    """TRAPS 16, 24: it says nothing for three heartbeats, and then goes on as if nothing had been."""
    clusters = side_by_side(new_cluster, [broker.new_vhost() for _ in KINDS])
    with frozen(broker):
        until = time.monotonic() + 3 * HEARTBEAT_S
        number = 100
        while time.monotonic() < until:
            for cluster in clusters:
                assert saves(cluster.primary, number, 10).slowest_s < BLOCKED_S, cluster.kind
            number += 10
        for cluster in clusters:
            wait_for(partial(drained, cluster.primary), f"{cluster.kind}: the outbox drained into the journal", 20)
    for cluster in clusters:
        assert_whole(cluster)


def test_a_lock_longer_than_a_heartbeat_costs_no_session(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ) -> None:
    """TRAPS 24: a program on a secondary holds what replay needs for three heartbeats; the broker's session stays."""
    clusters = side_by_side(new_cluster, [rabbitmq.new_vhost() for _ in KINDS])
    nodes = [cluster.nodes["st2"] for cluster in clusters]
    before = [node.log for node in nodes]
    with ExitStack() as held:
        holders = [held.enter_context(transaction(node)) for node in nodes]
        for holder, cluster in zip(holders, clusters, strict=True):
            holder.execute(text("UPDATE unit SET name = 'mine' WHERE id = 5"))
            cluster.primary.execute("UPDATE unit SET name = 'theirs' WHERE id = 5")
            saves(cluster.primary, 100, 50)
        until = time.monotonic() + 3 * HEARTBEAT_S
        wait_for(lambda: time.monotonic() > until, "three heartbeats")
        for holder, cluster in zip(holders, clusters, strict=True):
            assert cluster.nodes["st2"].sequence() < cluster.primary.sequence(), cluster.kind
            holder.rollback()
    for node, earlier, cluster in zip(nodes, before, clusters, strict=True):
        assert_whole(cluster, 20)
        assert '"event": "broker_' not in node.log.removeprefix(earlier), cluster.kind


@mostly("mariadb")
def test_an_acknowledgement_that_the_broker_will_not_wait_for_loses_nothing(
    new_cluster: MakeCluster, broker: PrivateRabbitMQ, database_kind: str
) -> None:
    """TRAPS 15: replay has to wait for longer than the broker's consumer_timeout."""
    with impatient(broker):
        cluster = ready(new_cluster(database_kind, broker_url=broker.new_vhost()))
        primary, node = cluster.primary, cluster.nodes["st2"]
        saves(primary, 0, 10)
        cluster.wait_equal()
        with transaction(node) as holder:
            holder.execute(text("UPDATE unit SET name = 'mine' WHERE id = 5"))
            primary.execute("UPDATE unit SET name = 'theirs' WHERE id = 5")
            saves(primary, 100, 50)
            wait_told(lambda: "timeout" in node.log, lambda: node.log[-2000:], 30)
            holder.rollback()
        assert_whole(cluster, 30)


@mostly("mariadb")
def test_a_node_that_is_away_for_ten_thousand_changes_catches_up(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 11, 12: its queue overflows and loses the oldest of them; the others are not concerned."""
    cluster = ready(new_cluster(database_kind), {"STSYNC_BROKER__QUEUE_MAX_BYTES": str(1 << 20)})
    primary, dead, other = cluster.primary, cluster.nodes["st2"], cluster.nodes["st3"]
    saves(primary, 0, 5)
    cluster.wait_equal()
    stood = dead.sequence()
    dead.kill()
    chance = random.Random(1)
    engine = primary.bare_engine()
    with engine.connect() as connection:
        for number in range(10_000):
            note = chance.randbytes(150).hex()
            connection.execute(text(f"INSERT INTO account VALUES ({number}, 'a{number}', NULL, '{note}', NULL)"))
    engine.dispose()
    wait_told(
        lambda: drained(primary) and other.sequence() == primary.sequence(), lambda: (other.sequence(), other.log[-2000:])
    )
    dead.start({"STSYNC_BROKER__QUEUE_MAX_BYTES": str(1 << 20)})
    assert_whole(cluster)
    assert "catch_up_asked" in dead.log, f"the queue kept everything since {stood}"


@contextmanager
def between(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the broker, and the address that leads through it."""
    at = make_url(url)
    assert at.port is not None
    with Proxy(at.port) as proxy:
        yield proxy, url.replace(f":{at.port}/", f":{proxy.port}/")


@mostly("postgresql")
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_connections_that_are_cut_anywhere_lose_nothing(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str, seed: int
) -> None:
    """TRAPS 8, 22, 25: in the middle of a frame, of a login, of a confirm; publishing and consuming, again and again."""
    with between(vhost_url) as (proxy, url):
        cluster = ready(new_cluster(database_kind, broker_url=url))
        proxy.cut_after(random.Random(seed), 60_000)
        with writing(cluster.primary, seed) as writers:
            for _ in range(4):
                proxy.cut()
                more(writers, 15)
            wait_told(lambda: proxy.cuts >= 40, lambda: (proxy.cuts, cluster.primary.log[-2000:]))
        proxy.cut_after(random.Random(seed), 0)
        assert_whole(cluster)


def test_a_network_that_swallows_everything_loses_nothing(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ) -> None:
    """TRAPS 16, 24: nobody is told that the connection is dead; then it is not, but both ends had given it up."""
    with ExitStack() as stack:
        ways = [stack.enter_context(between(rabbitmq.new_vhost())) for _ in KINDS]
        clusters = side_by_side(new_cluster, [url for _, url in ways])
        nodes = [node for cluster in clusters for node in cluster.nodes.values()]
        with ExitStack() as work:
            writers = [work.enter_context(writing(cluster.primary, 1, pace_s=0.1)) for cluster in clusters]
            for proxy, _ in ways:
                proxy.swallow()
            wait_told(
                lambda: all('"state": "down"' in node.log for node in nodes), lambda: [node.log[-500:] for node in nodes]
            )
            for some in writers:
                more(some, 50)
            for proxy, _ in ways:
                proxy.flow()
        for cluster in clusters:
            assert_whole(cluster)
