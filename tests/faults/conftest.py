"""The clusters of the integration tests, for faults: a running one on each database, or one that a test starts itself."""

import pytest

from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster, new_cluster

__all__ = ["cluster", "new_cluster", "wait_running"]


def wait_running(*nodes: Node) -> None:
    """Until the last start of each node's service consumes from the broker."""

    def runs(node: Node) -> bool:
        assert node.process is not None
        assert node.process.poll() is None, (
            f"{node.name} ended with {node.process.returncode}\n{node.log[-3000:]}"
        )
        words = node.log.rpartition('"event": "starting"')[2]
        return '"state": "ready", "reason": null, "event": "broker_consume"' in words

    for node in nodes:
        wait_for(lambda node=node: runs(node), lambda node=node: f"{node.name} consumes\n{node.log[-3000:]}")  # type: ignore[arg-type]


@pytest.fixture
def cluster(new_cluster: MakeCluster, database_kind: str) -> Cluster:
    """A running cluster of three on each database in turn; every node consumes."""
    found = new_cluster(database_kind)
    found.start()
    wait_running(*found.nodes.values())
    return found
