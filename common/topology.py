"""Every broker name of a cluster and what stands behind it, built here alone: no name is spelled twice."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

QueueType = Literal["quorum", "classic"]

DELIVERY_LIMIT = 1_000_000  # never -1, which below RabbitMQ 4.0 discards at the first return (TRAPS 13)
REPORTS_MAX_LENGTH = 10_000
REPORTS_MAX_BYTES = 64 << 20
REPORTS_TTL_MS = 600_000
SESSIONS_TTL_MS = 600_000
EVERY_NODE = "*"  # a routing key that is no node's name
NOTHING = "^$"


@dataclass(frozen=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["fanout", "direct"]


@dataclass(frozen=True)
class Queue:
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Binding:
    """What leads from an exchange to a queue."""

    exchange: str
    queue: str
    routing_key: str = ""


@dataclass(frozen=True)
class Topology:
    """The exchanges, queues and bindings of one cluster.

    events: the primary to all other nodes. direct: the primary to one node, by its name. sessions: the primary to all other nodes,
    or to one by its name, in a full synchronization, past what waits of the log. reports: all nodes to the primary. Rights differ by
    exchange, so that no message property can widen them (TRAPS 19). The queues of the `primary` stand for the day when it is a
    secondary; what it publishes does not go there, for nobody would take it out.
    """

    cluster: str
    nodes: tuple[str, ...]
    primary: str
    queue_type: QueueType = "quorum"
    queue_max_bytes: int = 1 << 30

    @property
    def events_exchange(self) -> str:
        """Where the primary publishes for every other node."""
        return self._name("events")

    @property
    def direct_exchange(self) -> str:
        """Where the primary publishes for one node; the routing key is the node's name."""
        return self._name("direct")

    @property
    def sessions_exchange(self) -> str:
        """Where the primary publishes what is said in a session; the routing key is EVERY_NODE or the node's name."""
        return self._name("sessions")

    @property
    def reports_exchange(self) -> str:
        """Where every node publishes for the primary."""
        return self._name("reports")

    @property
    def reports_queue(self) -> str:
        """What the primary consumes."""
        return self._name("primary")

    @property
    def lock_queue(self) -> str:
        """The exclusive queue of the cluster's one relay, which dies with its holder's connection."""
        return self._name("relay")

    def node_queue(self, node: str) -> str:
        """What one node consumes."""
        return self._name(f"node.{node}")

    def session_queue(self, node: str) -> str:
        """What one node consumes in a session."""
        return self._name(f"session.{node}")

    def user(self, node: str) -> str:
        """The broker user that `definitions` makes for a node."""
        return self._name(node)

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All exchanges."""
        return (
            Exchange(self.events_exchange, "fanout"),
            Exchange(self.direct_exchange, "direct"),
            Exchange(self.sessions_exchange, "direct"),
            Exchange(self.reports_exchange, "fanout"),
        )

    @property
    def queues(self) -> tuple[Queue, ...]:
        """All queues that outlive a connection."""
        nodes = (Queue(self.node_queue(node), self._arguments(self.queue_max_bytes)) for node in self.nodes)
        brief = self._arguments(self.queue_max_bytes) | {"x-message-ttl": SESSIONS_TTL_MS}
        sessions = (Queue(self.session_queue(node), brief) for node in self.nodes)
        bounds = {"x-max-length": REPORTS_MAX_LENGTH, "x-message-ttl": REPORTS_TTL_MS}
        reports_bytes = min(REPORTS_MAX_BYTES, self.queue_max_bytes)
        return (*nodes, *sessions, Queue(self.reports_queue, self._arguments(reports_bytes) | bounds))

    @property
    def unbound(self) -> Binding:
        """What may be bound from the time when another node was the primary, and is not to be."""
        return Binding(self.events_exchange, self.node_queue(self.primary))

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """All bindings."""
        events = (Binding(self.events_exchange, self.node_queue(node)) for node in self.nodes if node != self.primary)
        direct = (Binding(self.direct_exchange, self.node_queue(node), node) for node in self.nodes)
        others = [node for node in self.nodes if node != self.primary]
        sessions = (
            Binding(self.sessions_exchange, self.session_queue(node), key) for node in others for key in (EVERY_NODE, node)
        )
        return (*events, *direct, *sessions, Binding(self.reports_exchange, self.reports_queue))

    def _name(self, last: str) -> str:
        return f"stsync.{self.cluster}.{last}"

    def _arguments(self, max_bytes: int) -> dict[str, Any]:
        """A full queue drops its oldest message (that gap heals) and refuses no publisher (TRAPS 12)."""
        arguments: dict[str, Any] = {
            "x-queue-type": self.queue_type,
            "x-single-active-consumer": True,
            "x-overflow": "drop-head",
            "x-max-length-bytes": max_bytes,
        }
        if self.queue_type == "quorum":
            arguments["x-delivery-limit"] = DELIVERY_LIMIT
        return arguments


def definitions(topology: Topology, *, vhost: str) -> dict[str, Any]:
    """The RabbitMQ definitions document that gives each node a user with the least rights that serve it.

    The users have an empty password hash: nobody can log in by password until an administrator has set one
    (`rabbitmqctl change_password`), while a client certificate works at once. Only the primary may write to the
    nodes, read the reports and hold the relay's lock; after a promotion the document for the new primary is
    to be imported.
    """
    users = [
        {"name": topology.user(node), "password_hash": "", "hashing_algorithm": _HASHING, "tags": []}
        for node in topology.nodes
    ]
    return {
        "vhosts": [{"name": vhost}],
        "users": users,
        "permissions": [_permissions(topology, node, vhost, node == topology.primary) for node in topology.nodes],
        "topic_permissions": [],
        "parameters": [],
        "policies": [],
        "exchanges": [_exchange(one, vhost) for one in topology.exchanges],
        "queues": [_queue(one, vhost) for one in topology.queues],
        "bindings": [_binding(one, vhost) for one in topology.bindings],
    }


_HASHING = "rabbit_password_hashing_sha256"


def _permissions(topology: Topology, node: str, vhost: str, is_primary: bool) -> dict[str, str]:
    write, read = [topology.reports_exchange], [topology.node_queue(node), topology.session_queue(node)]
    configure = []
    if is_primary:
        write += [topology.events_exchange, topology.direct_exchange, topology.sessions_exchange]
        read += [topology.reports_queue]
        configure += [topology.lock_queue]
    return {
        "user": topology.user(node),
        "vhost": vhost,
        "configure": _exactly(configure),
        "write": _exactly(write),
        "read": _exactly(read),
    }


def _exactly(names: list[str]) -> str:
    """A pattern for these names only: RabbitMQ's patterns match anywhere unless anchored (TRAPS 19)."""
    return f"^({'|'.join(re.escape(name) for name in names)})$" if names else NOTHING


def _exchange(one: Exchange, vhost: str) -> dict[str, Any]:
    flags = {"durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    return {"name": one.name, "vhost": vhost, "type": one.kind, **flags}


def _queue(one: Queue, vhost: str) -> dict[str, Any]:
    return {
        "name": one.name,
        "vhost": vhost,
        "durable": True,
        "auto_delete": False,
        "arguments": one.arguments,
    }


def _binding(one: Binding, vhost: str) -> dict[str, Any]:
    return {
        "source": one.exchange,
        "vhost": vhost,
        "destination": one.queue,
        "destination_type": "queue",
        "routing_key": one.routing_key,
        "arguments": {},
    }
