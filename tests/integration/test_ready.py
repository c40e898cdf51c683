"""`stsync ready`, as a start script asks it: whether this node may serve, why not, and what to do (DOMAIN §2, INTERFACE)."""

import threading
from subprocess import CompletedProcess

from tests.faults.conftest import edit_here, mostly, wait_told
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import fill, run

QUIETLY = "[sessions]\nrejoin = false\nverify_every_s = 1e9\nverify_at_once = false\n"


def started(new_cluster: MakeCluster, kind: str, settings: str = "") -> Cluster:
    cluster = new_cluster(kind, nodes=("st1", "st2"), settings=QUIETLY + settings)
    cluster.start()
    fill(cluster, 20)
    return cluster


def said(node: Node, *words: str) -> tuple[int, str]:
    done = node.command("ready", *words)
    return done.returncode, done.stdout


def ready(node: Node) -> bool:
    return said(node) == (0, "ready\n")


def test_who_was_never_seen_to_be_equal_is_not_ready(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind)
    st2 = cluster.nodes["st2"]
    assert said(cluster.primary) == (0, "ready\n")
    code, told = said(st2)
    assert code == 1
    assert "has not been seen to be equal" in told
    assert "`stsync sync` on the primary" in told
    assert run(cluster.primary, "verify")[0] == 0
    wait_for(lambda: ready(st2), "ready after a verification")
    st2.stop()
    code, told = said(st2)
    assert (code, "start it with `stsync run`" in told) == (1, True)


@mostly("sqlite")
def test_strictly_only_after_a_full_synchronization_since_it_was_down(new_cluster: MakeCluster, database_kind: str) -> None:
    """DOMAIN §2, the vendor's rule."""
    cluster = started(new_cluster, database_kind, "[readiness]\nstrict = true\n")
    st2 = cluster.nodes["st2"]
    assert run(cluster.primary, "sync")[0] == 0
    wait_for(lambda: ready(st2), "ready")
    st2.stop()
    st2.start()
    wait_told(lambda: "since this node's service started (readiness.strict)" in said(st2)[1], lambda: said(st2))
    assert run(cluster.primary, "verify")[0] == 0
    assert said(st2)[0] == 1
    assert run(cluster.primary, "sync")[0] == 0
    wait_for(lambda: ready(st2), "ready again")


@mostly("postgresql")
def test_it_waits_as_long_as_it_was_told_to(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind)
    st2 = cluster.nodes["st2"]
    code, told = said(st2, "--wait", "0.5")
    assert (code, told.startswith("not ready: ")) == (1, True)
    found: list[CompletedProcess[str]] = []
    waiter = threading.Thread(target=lambda: found.append(st2.command("ready", "--wait", "50")))
    waiter.start()
    assert run(cluster.primary, "sync")[0] == 0
    waiter.join()
    assert (found[0].returncode, found[0].stdout) == (0, "ready\n")


@mostly("mariadb")
def test_what_could_not_be_applied_is_an_obstacle(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind)
    st2 = cluster.nodes["st2"]
    assert run(cluster.primary, "sync")[0] == 0
    wait_for(lambda: ready(st2), "ready")
    edit_here(st2, "INSERT INTO account (id, name) VALUES (500, 'taken')")
    cluster.primary.execute("INSERT INTO account (id, name) VALUES (501, 'taken')")
    wait_told(lambda: "1 changes could not be applied here" in said(st2)[1], lambda: said(st2))
    assert said(st2)[0] == 1
    edit_here(st2, "DELETE FROM account WHERE id = 500")
    wait_told(lambda: ready(st2), lambda: said(st2))


@mostly("sqlite")
def test_a_database_that_is_away_is_waited_for_and_no_fault(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = started(new_cluster, database_kind)
    st2 = cluster.nodes["st2"]
    st2.stop()
    other = st2.config.read_text().replace(st2.url, "postgresql://nobody:x@127.0.0.1:1/none")
    st2.config.write_text(other)
    code, told = said(st2, "--wait", "1")
    assert code == 1
    assert "cannot be reached" in told
