"""What a heartbeat says is true at every moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import nodestate, runtime
from common.changes import Position
from common.runtime import Runtime
from common.service_lock import ServiceLock
from common.stop import Stop
from common.wire import Heartbeat, parse_body
from publisher import journal
from publisher.composer import Batch
from publisher.heartbeat import Pulse
from tests.conftest import NewDatabase
from tests.harness import Node, make_cluster
from tests.integration.conftest import SCHEMA, TABLES

AT_ONE = Position(1, 1, bytes(range(32)))


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql", "mariadb"])
def test_a_batch_that_comes_meanwhile_is_not_past_retention(
    new_database: NewDatabase, tmp_path: Path, database_kind: str
) -> None:
    """TRAPS 12: a head whose batch the journal did not have yet would make every node ask for a full synchronization."""
    cluster = make_cluster(
        tmp_path / "c", database_kind, "amqp://nobody@127.0.0.1:1/%2F", new_database, schema=SCHEMA, tables=TABLES
    )
    node = cluster.primary
    database = node.database

    def head() -> Position:
        """As the relay moves it: the batch is in the journal first."""
        with database.connect() as connection:
            journal.append(connection, 1, [Batch(1, AT_ONE.hash, b"a batch")])
            connection.commit()
        return AT_ONE

    beat = first_beat(started(node), head)
    assert (beat.sequence, beat.journal_first, beat.hash) == (1, 1, AT_ONE.hash)
    for one in cluster.nodes.values():
        one.close()


def test_a_primary_started_again_and_again_repeats_no_number(new_database: NewDatabase, tmp_path: Path) -> None:
    """TRAPS 34: before anything is written too; a number that comes again is refused as replayed, a false alarm."""
    cluster = make_cluster(
        tmp_path / "c", "sqlite", "amqp://nobody@127.0.0.1:1/%2F", new_database, schema=SCHEMA, tables=TABLES, nodes=("st1",)
    )
    numbers = []
    for saved in (True, False, False, True, True):
        parts = started(cluster.primary)
        numbers.append(first_beat(parts, lambda: AT_ONE).number)
        if saved:  # as the control thread does when it gets to it
            cluster.primary.execute("UPDATE stsync_node SET heard_number = :n", n=numbers[-1])
    assert numbers == sorted(set(numbers))
    ahead = numbers[-1] + 3_600_000_000  # the clock was an hour ahead, and is set back
    cluster.primary.execute("UPDATE stsync_node SET heard_number = :n", n=ahead)
    assert first_beat(started(cluster.primary), lambda: AT_ONE).number > ahead + 100_000
    cluster.primary.close()


def started(node: Node) -> Runtime:
    """What `stsync run` reads and builds before its threads begin."""
    database, stop = node.database, Stop()
    with database.connect(read_only=True) as connection:
        state = nodestate.read_installed(connection, node.settings)
    return runtime.build(node.settings, database, state, stop, ServiceLock(database, stop))


def first_beat(parts: Runtime, head: Callable[[], Position]) -> Heartbeat:
    sent = []

    class Link:
        def publish(self, _exchange: str, _key: str, message: bytes, **_: Any) -> bool:
            sent.append(message)
            parts.stop.set()
            return True

    link: Any = Link()
    number = nodestate.next_beat(parts.state.heard_number)
    pulse = Pulse(
        parts.database, parts.settings, parts.topology, parts.writer, link, number=number, head=head, republished=lambda: 0
    )
    pulse.loop(parts.stop)
    return parse_body(parts.reader.open(parts.reader.verify(sent[0])), Heartbeat)
