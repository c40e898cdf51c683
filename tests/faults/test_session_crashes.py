"""A process that dies in any phase of a full synchronization: everybody goes on, nothing is half done, in the end all are equal."""

import threading
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from tests import crashpoints
from tests.conftest import KINDS
from tests.faults.conftest import wait_running, wait_told
from tests.faults.test_rejoin import settled, told
from tests.harness import Cluster, Node
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import fill, spoil

SETTINGS = """
[sessions]
rejoin_pause_s = 0.5
verify_every_s = 1e9
silent_s = 2.0
verify_at_once = false
"""


def each(group: dict[str, crashpoints.Point]) -> pytest.MarkDecorator:
    """Each point on SQLite, and those where transactions end on the others, too; the rest in the long run only."""
    pairs = [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=[] if kind == "sqlite" or "not" in name else [pytest.mark.long])
        for name in group
        for kind in KINDS
    ]
    return pytest.mark.parametrize(("point", "database_kind"), pairs)


class Command(threading.Thread):
    """`stsync sync`, meanwhile."""

    def __init__(self, node: Node, *options: str) -> None:
        super().__init__()
        self._node = node
        self._options = options
        self.done: CompletedProcess[str] | None = None
        self.start()

    def run(self) -> None:
        self.done = self._node.command("sync", "--json", *self._options, timeout_s=120)


def emptied(node: Node, _seed: int) -> None:
    """All that is listed is gone."""
    node.execute("DELETE FROM login", "DELETE FROM account", "DELETE FROM param WHERE islocal = 0")
    while ids := node.rows("SELECT id FROM unit WHERE id NOT IN (SELECT parent FROM unit WHERE parent IS NOT NULL)"):
        node.execute(f"DELETE FROM unit WHERE id IN ({', '.join(str(one) for (one,) in ids)})")


def spoiled(new_cluster: MakeCluster, kind: str, how: Callable[[Node, int], None] = spoil) -> Cluster:
    cluster = new_cluster(kind, settings=SETTINGS.replace("[sessions]", "[sessions]\nrejoin = false"))
    cluster.start()
    wait_running(*cluster.nodes.values())
    fill(cluster)
    for node in cluster.secondaries:
        how(node, 3)
    for node in cluster.nodes.values():  # from now on nodes rejoin by themselves
        node.config.write_text(node.config.read_text().replace("rejoin = false", "rejoin = true"))
    return cluster


def start_dying(node: Node, point: str) -> None:
    node.stop()
    node.start({crashpoints.VARIABLE: f"{point}:1"})
    wait_running(node)


def wait_dead(node: Node, point: str) -> None:
    process = node.process
    assert process is not None
    wait_told(lambda: process.poll() is not None, lambda: f"dead at: {point}\n{node.log[-3000:]}")
    assert node.log.endswith(crashpoints.words(point)), node.log[-3000:]


def installed(cluster: Cluster, node: Node) -> tuple[bool, bool]:
    """Whether a node has the primary's rows, and whether it says so."""
    rows = not [one for one in cluster.differences() if one.startswith(f"{node.name}.")]
    ((full_ms, proven_ms),) = node.rows("SELECT last_full_sync_ms, proven_ms FROM stsync_node")
    assert (full_ms is None) == (proven_ms is None)
    return rows, full_ms is not None


@each(crashpoints.IN_SESSION)
def test_a_secondary_that_dies_has_all_of_it_or_nothing_and_rejoins(
    new_cluster: MakeCluster, point: str, database_kind: str
) -> None:
    _dies(spoiled(new_cluster, database_kind), point)


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("point", ["chunk kept", "installed, position not moved"])
def test_an_empty_secondary_that_dies_while_it_is_filled_is_empty_and_rejoins(
    new_cluster: MakeCluster, point: str, database_kind: str
) -> None:
    cluster = spoiled(new_cluster, database_kind, emptied)
    _dies(cluster, point)


def _dies(cluster: Cluster, point: str) -> None:
    victim = cluster.nodes["st3"]
    start_dying(victim, point)
    command = Command(cluster.primary)
    wait_dead(victim, point)
    done = point == "installed, not told"
    assert installed(cluster, victim) == (done, done)
    victim.start()
    command.join()
    assert command.done is not None
    assert command.done.returncode in (0, 1), command.done.stderr
    primary = cluster.primary
    primary.stop()
    primary.start()  # with `rejoin`
    wait_told(lambda: settled(cluster) and not cluster.differences(), lambda: told(cluster))
    cluster.primary.execute("UPDATE account SET note = 'after' WHERE id = 1")
    cluster.wait_equal()


@each(crashpoints.LEADING)
def test_a_primary_that_dies_leaves_secondaries_that_go_on(new_cluster: MakeCluster, point: str, database_kind: str) -> None:
    cluster = spoiled(new_cluster, database_kind)
    start_dying(cluster.primary, point)
    command = Command(cluster.primary)
    wait_dead(cluster.primary, point)
    command.join()
    assert command.done is not None
    assert command.done.returncode != 0
    assert "service has ended" in command.done.stderr
    wait_told(
        lambda: all(node.status()["state"] not in ("paused", "synchronizing") for node in cluster.secondaries),
        lambda: told(cluster),
    )
    cluster.primary.start()
    wait_told(lambda: settled(cluster) and not cluster.differences(), lambda: told(cluster))
    cluster.primary.execute("UPDATE account SET note = 'after' WHERE id = 1")
    cluster.wait_equal()
