"""Primary and secondary in this process, without a broker: what the relay drains is handed to the applier as it is."""

from dataclasses import replace
from typing import Any

from common import nodestate, runtime
from common.broker import Delivery
from common.live_lists import LiveLists
from common.runtime import Runtime
from common.service_lock import ServiceLock
from common.stop import Stop
from consumer.applier import Applier
from publisher.relay import Relay
from tests.harness import Cluster, Node


class Pipeline:
    """Capture, relay, verification and replay as the services run them, on real databases; one call moves all there is."""

    def __init__(self, cluster: Cluster, name: str = "st2") -> None:
        self.cluster = cluster
        self.primary, self.secondary = cluster.primary, cluster.nodes[name]
        self.relay = self._relay()
        parts, self.lists = _built(self.secondary)
        self.applier = Applier(
            parts.database, parts.settings, parts.reader, self.lists, self.primary.name, ask=lambda _first, _limit: True
        )
        self.applier_database = parts.database
        self._connection = parts.database.open()
        self.applier.load(self._connection)
        self._tag = 0
        self._taken: list[Delivery] = []

    def restart_relay(self) -> None:
        """A new one, as a new process has it, in the place of the old one."""
        self.relay.close()
        self.relay = self._relay()

    def _relay(self) -> Relay:
        parts, lists = _built(self.primary)
        self._primary_lists = lists
        return Relay(parts.database, parts.settings.relay, parts.writer, lambda: lists.present, parts.state.position)

    def move(self) -> None:
        """Drain the outbox and apply what came of it; as the services do, by what `install` found last."""
        for node, lists in ((self.primary, self._primary_lists), (self.secondary, self.lists)):
            ((installed_ms,),) = node.rows("SELECT installed_ms FROM stsync_node")
            lists.follow(installed_ms)
        messages: list[bytes] = []
        while (drained := self.relay.drain()) is not None:
            messages += [batch.message for batch in drained.batches]
        deliveries = []
        for message in messages:
            self._tag += 1
            deliveries.append(Delivery(message, self._tag, None, redelivered=False, generation=1))
        self._taken = deliveries
        self.applier.work(self._connection, deliveries)
        self._connection.rollback()

    def again(self) -> None:
        """What the service does when a move ended in Unavailable: a new connection, the position as it is saved, and what was not
        acknowledged once more."""
        self._connection.invalidate()
        self._connection.close()
        self._connection = self.applier_database.open()
        self.applier.load(self._connection)
        self.applier.work(self._connection, [replace(one, redelivered=True) for one in self._taken])
        self._connection.rollback()

    def waiting(self) -> int:
        """How many rows of the outbox the journal has not."""
        statement = (
            "SELECT count(*) FROM stsync_outbox o WHERE NOT EXISTS"
            " (SELECT 1 FROM stsync_taken t WHERE o.id BETWEEN t.first_id AND t.last_id)"
        )
        return int(self.primary.rows(statement)[0][0])

    def session(self, statement: str) -> list[tuple[Any, ...]]:
        """What the secondary's own session answers."""
        rows = [tuple(row) for row in self._connection.exec_driver_sql(statement)]
        self._connection.rollback()
        return rows

    def wrong(self) -> list[str]:
        """What is not as it should be after a move: rows that differ, changes that wait."""
        waiting = self.secondary.rows("SELECT table_name, kind, row_json, reason FROM stsync_quarantine")
        return self.cluster.differences() + [f"quarantined: {one}" for one in waiting]

    def close(self) -> None:
        self.relay.close()
        self._connection.close()
        for node in self.cluster.nodes.values():
            node.close()


def _built(node: Node) -> tuple[Runtime, LiveLists]:
    database, stop = node.database, Stop()
    with database.connect(read_only=True) as connection:
        state = nodestate.read_installed(connection, node.settings)
    lists = LiveLists(database, node.settings)
    lists.load()
    return runtime.build(node.settings, database, state, stop, ServiceLock(database, stop)), lists
