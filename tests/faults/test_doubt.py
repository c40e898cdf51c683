"""What puts in doubt that a node is equal to the primary says so, and is looked into without being asked (DOMAIN §2, TRAPS 6)."""

import pytest

from tests.faults.conftest import mostly, wait_told
from tests.faults.test_rejoin import meet, sessions_of, settled, state_of, told
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import fill

AT_ONCE = """
[sessions]
rejoin_pause_s = 0.5
verify_every_s = 1e9
"""
BY_HAND = AT_ONCE + "verify_at_once = false\n"
LOOKED = ("verify", "doubt", "resumed")


def looked(cluster: Cluster) -> int:
    return sessions_of(cluster.primary).count(LOOKED)


def doubt_of(node: Node) -> str | None:
    found: str | None = node.rows("SELECT doubt FROM stsync_node")[0][0]
    return found


def edits_of(node: Node) -> int:
    return int(node.rows("SELECT count(*) FROM stsync_outbox")[0][0])


def started(new_cluster: MakeCluster, kind: str, settings: str) -> Cluster:
    cluster = new_cluster(kind, nodes=("st1", "st2"), settings=settings)
    cluster.start()
    meet(cluster)
    fill(cluster, 20)
    return cluster


@mostly("sqlite")
def test_changes_on_a_secondary_are_told_and_compared_at_once(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind, AT_ONCE)
    st2 = cluster.nodes["st2"]
    st2.execute("UPDATE account SET note = 'here only' WHERE id = 3")
    wait_told(lambda: state_of(cluster, "st2")[0] == "needs_full_sync", lambda: told(cluster))
    assert "drift" in (reason := state_of(cluster, "st2")[1] or "")
    assert "1 rows of account" in reason
    assert looked(cluster) == 1
    assert st2.command("ready").returncode == 1
    assert cluster.primary.command("sync").returncode == 0
    wait_told(lambda: settled(cluster) and st2.command("ready").returncode == 0, lambda: told(cluster))
    assert (doubt_of(st2), edits_of(st2)) == (None, 0)
    cluster.wait_equal()


def test_changes_that_were_undone_are_forgotten(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind, BY_HAND)
    st2 = cluster.nodes["st2"]
    ((before,),) = st2.rows("SELECT note FROM account WHERE id = 3")
    st2.execute("UPDATE account SET note = 'here only' WHERE id = 3")
    st2.execute("UPDATE account SET note = :before WHERE id = 3", before=before)
    wait_told(lambda: "made on this node itself" in (state_of(cluster, "st2")[1] or ""), lambda: told(cluster))
    assert state_of(cluster, "st2")[0] == "in_sync"
    assert "made on this node itself" in st2.command("ready").stdout
    assert "made on this node itself" in st2.status()["reason"]
    assert edits_of(st2) == 2
    assert cluster.primary.command("verify").returncode == 0
    wait_told(lambda: doubt_of(st2) is None and settled(cluster), lambda: told(cluster))
    assert edits_of(st2) == 0
    wait_for(lambda: st2.command("ready").returncode == 0, "ready")
    st2.execute("UPDATE account SET note = 'again' WHERE id = 3")
    wait_told(lambda: "made on this node itself" in (doubt_of(st2) or ""), lambda: told(cluster))


@mostly("mariadb")
def test_an_upgrade_is_told_until_the_nodes_were_compared(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind, AT_ONCE)
    for node in cluster.nodes.values():
        node.stop()
        node.execute("UPDATE stsync_node SET version = '0.0.9'")
        assert node.command("install").returncode == 0
        assert "upgraded (from 0.0.9" in (doubt_of(node) or "")
    assert any("upgraded (from 0.0.9" in one for one in cluster.primary.status()["warnings"])
    assert "upgraded (from 0.0.9" in cluster.primary.command("status").stdout
    cluster.start()
    wait_told(lambda: all(doubt_of(node) is None for node in cluster.nodes.values()), lambda: told(cluster))
    assert looked(cluster) == 1
    wait_told(lambda: cluster.primary.status()["warnings"] == [], lambda: told(cluster))
    wait_for(lambda: cluster.nodes["st2"].command("ready").returncode == 0, "ready")


def test_a_new_schema_is_told_until_the_nodes_were_compared(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind, AT_ONCE)
    for node in reversed(cluster.nodes.values()):
        node.execute("ALTER TABLE account ADD COLUMN more VARCHAR(20)")
        wait_for(lambda one=node: "install" in " ".join(one.status()["warnings"]), "told")  # type: ignore[misc]
        assert node.command("install").returncode == 0
    wait_told(
        lambda: looked(cluster) >= 1 and all(doubt_of(n) is None for n in cluster.nodes.values()), lambda: told(cluster)
    )
    cluster.primary.execute("UPDATE account SET more = 'new' WHERE id = 5")
    cluster.wait_equal()
    wait_told(lambda: settled(cluster) and cluster.primary.status()["warnings"] == [], lambda: told(cluster))


@mostly("postgresql")
@pytest.mark.parametrize("differs", [False, True])
def test_all_are_compared_as_the_whole_cluster_starts_again(
    new_cluster: MakeCluster, database_kind: str, differs: bool
) -> None:
    """Whatever happened while nobody looked: here, a backup of one table that was put back without a trigger seeing it."""
    cluster = started(new_cluster, database_kind, AT_ONCE)
    for node in cluster.nodes.values():
        node.stop()
    st2 = cluster.nodes["st2"]
    if differs:
        st2.execute("DELETE FROM login WHERE account_id = 4", "DELETE FROM stsync_outbox")
    cluster.start()
    wait_told(lambda: looked(cluster) == 1, lambda: told(cluster))
    if differs:
        wait_told(lambda: "rows of login" in (state_of(cluster, "st2")[1] or ""), lambda: told(cluster))
        assert state_of(cluster, "st2")[0] == "needs_full_sync"
    else:
        wait_told(lambda: settled(cluster), lambda: told(cluster))
        assert st2.command("ready").returncode == 0
