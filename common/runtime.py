"""What a service is given: settings, database, keys, stop; built once, by the `run` command."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from common.database import Database
from common.errors import MessageRefused, Misconfigured
from common.nodestate import NodeState
from common.service_lock import ServiceLock
from common.settings import Settings
from common.stop import Stop
from common.topology import Topology
from common.trust.authorities import Authorities
from common.trust.identity import load_identity
from common.trust.sealing import Opener, Sealer, load_cluster_pair
from common.wire import Reader, Writer


@dataclass(frozen=True)
class Runtime:
    """A node's collaborators."""

    settings: Settings
    database: Database
    topology: Topology
    writer: Writer
    reader: Reader
    state: NodeState
    stop: Stop
    lock: ServiceLock


Service = Callable[[Runtime], None]


def build(settings: Settings, database: Database, state: NodeState, stop: Stop, lock: ServiceLock) -> Runtime:
    """Load keys and certificates and put the parts together; raises Misconfigured naming the file."""
    trust = settings.trust
    identity = load_identity(trust.key, trust.certificate, settings.node.name)
    public, private = load_cluster_pair(trust.cluster_certificate, trust.cluster_key)
    sealer = Sealer(public, rotate_after_s=timedelta(hours=trust.data_key_hours).total_seconds())
    authorities = Authorities.from_files(trust.authorities)
    try:
        authorities.verify(identity.chain)
    except MessageRefused as exc:
        raise Misconfigured(f"{trust.certificate}: {exc}; name its issuer in trust.authorities or issue it anew") from exc
    reader = Reader(settings.node.name, settings.cluster.name, settings.cluster.names, authorities, Opener(private))
    topology = Topology(
        settings.cluster.name,
        settings.cluster.names,
        state.primary_name,
        settings.broker.queue_type,
        settings.broker.queue_max_bytes,
    )
    writer = Writer(identity, sealer, settings.cluster.name)
    return Runtime(settings, database, topology, writer, reader, state, stop, lock)
