"""Every message is small, whatever the rows are that it carries; a row larger than any message travels in many (TRAPS 17)."""

import base64
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pika
import pytest
from sqlalchemy import text

from common.topology import Topology
from common.wire import MAX_BODY_BYTES, MAX_MESSAGE_BYTES
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster, wait_for
from tests.integration.conftest import MakeCluster
from tests.pipeline import Pipeline

BOUND = 512 << 10
LARGE = MAX_BODY_BYTES + (1 << 20)  # of which compression leaves three quarters
TOPOLOGY = Topology("mft", ("st1", "st2"), "st1")
LONG = {"sqlite": "TEXT", "postgresql": "TEXT", "mariadb": "LONGTEXT"}


def noise(size: int, seed: int) -> str:
    """Text that compression takes no more from than its letters allow, a quarter."""
    return base64.b64encode(random.Random(seed).randbytes(size * 3 // 4)).decode()


def same(size: int, seed: int) -> str:
    return str(seed % 10) * size


def write(node: Node, *rows: tuple[int, str]) -> None:
    """In one transaction."""
    with node.engine.begin() as connection:
        connection.execute(text("INSERT INTO wide VALUES (:i, :b)"), [{"i": number, "b": body} for number, body in rows])


def sizes(node: Node) -> list[int]:
    """Of all messages in the journal; what stands beside each is true."""
    found = node.rows("SELECT size, length(message) FROM stsync_journal ORDER BY sequence")
    assert all(size == length for size, length in found)
    return [size for size, _ in found]


def schema(kind: str) -> list[str]:
    return [f"CREATE TABLE wide (id BIGINT PRIMARY KEY, body {LONG[kind]})"]


def longer(pipeline: Pipeline) -> str:
    body = {"mariadb": "CONCAT(body, 'y')"}.get(pipeline.cluster.kind, "body || 'y'")
    return f"UPDATE wide SET body = {body}"


@pytest.fixture
def settings() -> str:
    """More of every node."""
    return ""


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase, settings: str) -> Iterator[Pipeline]:
    """With the table of wide rows."""
    names, tables = ("st1", "st2"), schema(database_kind)
    cluster = make_cluster(
        tmp_path / "c",
        database_kind,
        NO_BROKER,
        new_database,
        schema=tables,
        tables="wide\n",
        nodes=names,
        settings=settings,
    )
    made = Pipeline(cluster)
    yield made
    made.close()


@pytest.mark.parametrize("fill", [noise, same])
def test_no_batch_of_a_bulk_transaction_is_larger_than_its_bound(
    pipeline: Pipeline, fill: Callable[[int, int], str]
) -> None:
    """TRAPS 17: narrow, wide and very wide rows that come, change, move and go; compression takes much from them, or little."""
    primary = pipeline.primary
    widths = [100] * 2_000 + [9_000] * 200 + [300_000] * 6
    write(primary, *((number, fill(width, number)) for number, width in enumerate(widths)))
    pipeline.move()
    primary.execute(longer(pipeline), "UPDATE wide SET id = id + 10000 WHERE id % 10 = 1")
    primary.execute("DELETE FROM wide WHERE id % 2 = 0")
    pipeline.move()
    assert pipeline.wrong() == []
    found = sizes(primary)
    assert max(found) <= BOUND
    assert len(found) > 2 * sum(widths) / BOUND, "they are cut by what they unfold to"


def test_a_row_larger_than_any_message_arrives(pipeline: Pipeline) -> None:
    """TRAPS 17: above every bound of a message and of its body, among small ones, and again when it changes, moves and goes."""
    primary = pipeline.primary
    write(primary, (1, "before"), (2, noise(LARGE, 1)), (3, "after"))
    pipeline.move()
    assert pipeline.wrong() == []
    found = sizes(primary)
    assert max(found) <= BOUND
    assert sum(found) > MAX_MESSAGE_BYTES
    primary.execute(f"{longer(pipeline)}, id = 4 WHERE id = 2")
    pipeline.move()
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT id, length(body) FROM wide ORDER BY id")[-1] == (4, LARGE + 1)
    primary.execute("DELETE FROM wide WHERE id = 4")
    pipeline.move()
    assert pipeline.wrong() == []
    assert max(sizes(primary)) <= BOUND


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("settings", [f"[relay]\nbatch_bytes = {8 << 20}\n"])
def test_the_largest_batches_that_may_be_set_are_taken(pipeline: Pipeline) -> None:
    """TRAPS 17: a setting that is accepted leads to no message that is refused."""
    write(pipeline.primary, (1, noise(LARGE, 1)), (2, same(LARGE, 2)))
    pipeline.move()
    assert pipeline.wrong() == []
    assert 4 << 20 < max(sizes(pipeline.primary)) <= MAX_MESSAGE_BYTES


class Spy:
    """Hears everything that is published in a virtual host."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0"))
        self._channel = self._connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        for exchange, key in (
            (TOPOLOGY.events_exchange, ""),
            (TOPOLOGY.direct_exchange, "st2"),
            (TOPOLOGY.reports_exchange, ""),
        ):
            self._channel.queue_bind(self._queue, exchange, key)

    def heard(self) -> dict[str, list[int]]:
        """The sizes of all messages so far, by their exchange."""
        found: dict[str, list[int]] = {}
        while True:
            method, _, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                return found
            found.setdefault(method.exchange, []).append(len(body))

    def purge(self, queue: str) -> None:
        self._channel.queue_purge(queue)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(
    "database_kind", ["sqlite", *(pytest.param(one, marks=pytest.mark.long) for one in ("postgresql", "mariadb"))]
)
def test_every_message_that_is_published_is_small(new_cluster: MakeCluster, vhost_url: str, database_kind: str) -> None:
    """TRAPS 17: batches, what is sent again from the journal, heartbeats and reports; a large row stops none of them."""
    cluster = new_cluster(
        database_kind, broker_url=vhost_url, schema=schema(database_kind), tables="wide\n", nodes=("st1", "st2")
    )
    primary, node = cluster.primary, cluster.nodes["st2"]
    cluster.start()
    write(primary, (1, "before"))
    cluster.wait_equal()
    with closing(Spy(vhost_url)) as spy:
        node.kill()
        write(primary, (2, noise(LARGE, 1)))
        write(primary, (3, "after"))
        wait_for(lambda: primary.status()["published"] == primary.sequence() > 30, "all of it published")
        spy.purge(TOPOLOGY.node_queue("st2"))
        node.start()
        cluster.wait_equal()
        found = spy.heard()
    assert set(found) == {TOPOLOGY.events_exchange, TOPOLOGY.direct_exchange, TOPOLOGY.reports_exchange}
    assert max(max(some) for some in found.values()) <= BOUND
    assert sum(found[TOPOLOGY.events_exchange]) > MAX_MESSAGE_BYTES
    assert sum(found[TOPOLOGY.direct_exchange]) > MAX_MESSAGE_BYTES
    assert sum(node.status()["refused"].values()) == 0


def test_a_change_above_a_nodes_bound_is_told_and_concerns_no_other_node(new_cluster: MakeCluster) -> None:
    """TRAPS 12, 17: the node that may not take it says so, with what to do; it is not tried again and again."""
    cluster = new_cluster("sqlite", schema=schema("sqlite"), tables="wide\n")
    primary, node, other = cluster.primary, cluster.nodes["st2"], cluster.nodes["st3"]
    with node.config.open("a") as settings:
        settings.write(f"[replay]\nmax_change_bytes = {1 << 20}\n")
    cluster.start()
    for number, size in enumerate((1, 700_000, 2 << 20, 1)):
        write(primary, (number, noise(size, number) or "x"))
        wait_for(lambda: not primary.rows("SELECT 1 FROM stsync_outbox"), "a change set of its own")
    wait_for(lambda: other.sequence() == primary.sequence(), "the other one has everything")
    assert other.rows("SELECT count(*) FROM wide") == [(4,)]
    wait_for(lambda: node.status()["state"] == "needs_full_sync", "it says so")
    wait_for(lambda: primary.status()["nodes"][0]["state"] == "needs_full_sync", "the primary knows")
    assert node.rows("SELECT id FROM wide ORDER BY id") == [(0,), (1,)]
    wait_for(lambda: primary.status()["nodes"][1]["state"] == "in_sync", "the other one is not concerned")
    for reason in (node.status()["reason"], primary.status()["nodes"][0]["reason"]):
        assert f"bound of {1 << 20}" in reason
        assert "replay.max_change_bytes" in reason
    assert node.stop() == 0
    node.start()
    wait_for(lambda: "needs_full_sync" in node.words, "it finds the same again")
    assert node.status()["state"] == "needs_full_sync"
    assert node.stop() == 0
    node.config.write_text(node.config.read_text().replace(f"max_change_bytes = {1 << 20}", f"max_change_bytes = {1 << 22}"))
    node.start()
    cluster.wait_equal()
    wait_for(lambda: node.status()["state"] == "in_sync", "what it asked for was done")
