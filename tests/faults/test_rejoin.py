"""Nodes that the log cannot bring up to date ask for a full synchronization of their own, and the others go on (TRAPS 12)."""

from functools import partial

from tests.faults.conftest import mostly, wait_told
from tests.faults.test_broker_loss import do, purge
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import fill

BY_ITSELF = """
[sessions]
rejoin_pause_s = 0.5
verify_every_s = 1e9
[journal]
prune_every_s = 0.2
"""


def state_of(cluster: Cluster, name: str) -> tuple[str, str | None]:
    found = next(one for one in cluster.primary.status()["nodes"] if one["name"] == name)
    return found["state"], found["reason"]


def settled(cluster: Cluster) -> bool:
    return all(one["state"] == "in_sync" for one in cluster.primary.status()["nodes"])


def sessions_of(node: Node) -> list[tuple[str, str, str]]:
    return [(str(m), str(c), str(p)) for m, c, p in node.rows("SELECT mode, cause, phase FROM stsync_sessions ORDER BY id")]


def told(cluster: Cluster) -> list[object]:
    return [sessions_of(cluster.primary), cluster.primary.status(), *(node.log[-2500:] for node in cluster.nodes.values())]


def meet(cluster: Cluster) -> None:
    """Until every secondary has been seen to be equal for the first time."""
    first = [("sync", "first contact", "resumed")] * len(cluster.secondaries)
    wait_told(lambda: sessions_of(cluster.primary) == first and settled(cluster), lambda: told(cluster))


def prune(cluster: Cluster) -> None:
    """As if the journal's retention were over for all but its newest batch."""
    cluster.primary.execute("DELETE FROM stsync_journal WHERE sequence < (SELECT sequence FROM stsync_node)")


@mostly("mariadb")
def test_a_node_past_retention_rejoins_by_itself_and_the_others_go_on(
    new_cluster: MakeCluster, database_kind: str, vhost_url: str
) -> None:
    cluster = new_cluster(database_kind, settings=BY_ITSELF, broker_url=vhost_url)
    cluster.start()
    meet(cluster)
    fill(cluster, 100)
    cluster.nodes["st3"].kill()
    for i in range(30):
        cluster.primary.execute(
            f"UPDATE account SET note = 'away {i}' WHERE id = {i}", f"DELETE FROM login WHERE account_id = {i}"
        )
    wait_for(lambda: cluster.nodes["st2"].sequence() == cluster.primary.sequence(), "st2 has it all")
    position = cluster.nodes["st3"].sequence()
    wait_for(lambda: cluster.primary.rows("SELECT count(*) FROM stsync_outbox") == [(0,)], "an empty outbox")
    do(vhost_url, partial(purge, node="st3"))
    prune(cluster)
    cluster.nodes["st3"].start()
    wait_told(lambda: cluster.nodes["st3"].sequence() > position and settled(cluster), lambda: told(cluster))
    cluster.wait_equal()
    assert ("sync", "rejoin", "resumed") in sessions_of(cluster.primary)
    assert "session_began" not in cluster.nodes["st2"].words.split("session_ended")[-1]
    assert cluster.nodes["st3"].status()["last_full_sync"] is not None


def test_a_fresh_node_gets_what_there_is(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = new_cluster(database_kind, settings=BY_ITSELF)
    cluster.primary.execute("INSERT INTO unit (id, name) VALUES (1, 'from before')")
    cluster.primary.execute("DELETE FROM stsync_outbox")  # as rows that stood there before `install`
    cluster.start()
    meet(cluster)
    cluster.wait_equal()
    assert all(cause == "first contact" for _, cause, _ in sessions_of(cluster.primary))
    for node in cluster.secondaries:
        assert node.command("ready").returncode == 0, node.command("ready").stdout


@mostly("postgresql")
def test_a_node_that_has_more_is_not_emptied_by_first_contact(new_cluster: MakeCluster, database_kind: str) -> None:
    """Nobody has said yet that the primary is right; so it says what to do, and loops do not follow."""
    cluster = new_cluster(database_kind, nodes=("st1", "st2"), settings=BY_ITSELF)
    st2 = cluster.nodes["st2"]
    st2.execute("INSERT INTO unit (id, name) VALUES (5, 'years of work')")
    st2.execute("DELETE FROM stsync_outbox")
    cluster.start()
    wait_told(lambda: "never been synchronized" in (state_of(cluster, "st2")[1] or ""), lambda: told(cluster))
    wait_for(lambda: any("3 full synchronizations" in one for one in cluster.primary.status()["warnings"]), "the alarm")
    assert st2.rows("SELECT name FROM unit") == [("years of work",)]
    wait_for(lambda: "`stsync sync` on the primary" in st2.command("ready").stdout, "what to do, told by `ready`")
    assert st2.command("ready").returncode == 1
    assert cluster.primary.command("sync").returncode == 0
    wait_for(lambda: settled(cluster), "in sync")
    assert st2.rows("SELECT name FROM unit") == []
    assert st2.command("ready").returncode == 0


@mostly("mariadb")
def test_a_position_of_another_history_rejoins(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = new_cluster(database_kind, nodes=("st1", "st2"), settings=BY_ITSELF)
    cluster.start()
    meet(cluster)
    fill(cluster, 20)
    st2 = cluster.nodes["st2"]
    st2.stop()
    other = "X'" + "ab" * 32 + "'" if database_kind != "postgresql" else "'\\x" + "ab" * 32 + "'::bytea"
    st2.execute(f"UPDATE stsync_node SET hash = {other.replace(':', chr(92) + ':')}")
    st2.execute("DELETE FROM login")
    st2.start()
    wait_told(
        lambda: ("sync", "rejoin", "resumed") in sessions_of(cluster.primary) and settled(cluster), lambda: told(cluster)
    )
    cluster.wait_equal()


@mostly("sqlite")
def test_a_primary_that_is_behind_empties_nobody_by_itself(new_cluster: MakeCluster, database_kind: str) -> None:
    """DOMAIN §7: a restored node becomes primary with outdated data. Only a person can say which is right."""
    cluster = new_cluster(database_kind, nodes=("st1", "st2"), settings=BY_ITSELF)
    cluster.start()
    meet(cluster)
    fill(cluster, 20)
    known = len(sessions_of(cluster.primary))
    primary = cluster.primary
    primary.stop()
    st2 = cluster.nodes["st2"]
    st2.execute("UPDATE stsync_node SET sequence = sequence + 100, head_sequence = head_sequence + 100")
    st2.stop()
    st2.start()
    primary.start()
    wait_told(lambda: state_of(cluster, "st2")[0] == "needs_full_sync", lambda: told(cluster))
    assert "restored" in (state_of(cluster, "st2")[1] or "")
    heard = primary.rows("SELECT number FROM stsync_reports")[0][0]
    wait_for(lambda: primary.rows("SELECT number FROM stsync_reports")[0][0] >= heard + 2, "what it says twice more")
    primary.execute(*(f"UPDATE account SET note = 'later {i}' WHERE id = 1" for i in range(5)))
    assert len(sessions_of(cluster.primary)) == known
    assert any("had more of the log" in one for one in primary.status()["warnings"])
    assert cluster.primary.command("sync").returncode == 0
    wait_told(lambda: settled(cluster), lambda: told(cluster))
    cluster.wait_equal()
    assert not any("had more of the log" in one for one in primary.status()["warnings"])


@mostly("postgresql")
def test_drift_is_found_and_repaired_by_itself(new_cluster: MakeCluster, database_kind: str) -> None:
    settings = BY_ITSELF.replace("1e9", "1.0").replace("[journal]", "repair_drift = true\n[journal]")
    cluster = new_cluster(database_kind, settings=settings)
    cluster.start()
    meet(cluster)
    fill(cluster, 50)
    cluster.nodes["st2"].execute("DELETE FROM login WHERE account_id = 4")
    wait_told(lambda: ("sync", "drift", "resumed") in sessions_of(cluster.primary), lambda: told(cluster))
    wait_for(lambda: settled(cluster), "in sync")
    cluster.wait_equal()
