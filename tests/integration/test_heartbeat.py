"""What a heartbeat says is true at every moment."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common import nodestate, runtime
from common.changes import Position
from common.dialects.script import Script
from common.service_lock import ServiceLock
from common.stop import Stop
from common.wire import Heartbeat, parse_body
from publisher import journal
from publisher.composer import Batch
from publisher.heartbeat import Pulse
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.integration.conftest import SCHEMA, TABLES

AT_ONE = Position(1, 1, bytes(range(32)))


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql", "mariadb"])
def test_a_batch_that_comes_meanwhile_is_not_past_retention(
    new_database: NewDatabase, tmp_path: Path, database_kind: str
) -> None:
    """TRAPS 9, 12: a head whose batch the journal did not have yet would make every node ask for a full synchronization."""
    cluster = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES)
    node = cluster.primary
    database, stop, sent = node.database, Stop(), []
    with database.connect(read_only=True) as connection:
        state = nodestate.read_installed(connection, node.settings)
    parts = runtime.build(node.settings, database, state, stop, ServiceLock(database, stop))

    class Link:
        def publish(self, _exchange: str, _key: str, message: bytes, **_: Any) -> bool:
            sent.append(message)
            stop.set()
            return True

    def head() -> Position:
        """As the relay moves it: the batch is in the journal first."""
        with database.connect() as connection:
            journal.append(Script(connection), 1, [Batch(1, AT_ONE.hash, b"a batch")])
            connection.commit()
        return AT_ONE

    link: Any = Link()
    pulse = Pulse(database, node.settings, parts.topology, parts.writer, link, head=head, republished=lambda: 0)
    pulse.start(1)
    pulse.loop(stop)
    beat = parse_body(parts.reader.open(parts.reader.verify(sent[0])), Heartbeat)
    assert (beat.sequence, beat.journal_first, beat.hash) == (1, 1, AT_ONE.hash)
    for one in cluster.nodes.values():
        one.close()


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql", "mariadb"])
def test_no_number_is_given_twice(
    new_database: NewDatabase, tmp_path: Path, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 34: to whatever sort of message, by whatever run, though the clock goes back; else a true message is a replayed one."""
    cluster = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES)
    given: list[int] = []
    with cluster.primary.database.connect() as connection:
        for _ in range(3):
            given += nodestate.reserve_numbers(connection, 2)
            connection.commit()
            before = time.time_ns()
            monkeypatch.setattr(time, "time_ns", lambda before=before: before - 86_400 * 10**9)
    assert given == sorted(given)
    assert min(later - earlier for earlier, later in pairwise(given)) >= 10**7
    for one in cluster.nodes.values():
        one.close()
