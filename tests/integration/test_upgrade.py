"""A database that an older version prepared: told, and brought up to date by `install`, with nothing lost."""

from tests.harness import wait_for
from tests.integration.conftest import MakeCluster


def test_an_older_layout_is_told_and_install_brings_it_up_to_date(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = new_cluster(database_kind, nodes=("st1", "st2"))
    st2 = cluster.nodes["st2"]
    st2.execute(
        "UPDATE stsync_node SET version = '0.1.0', proven_ms = 1",
        "ALTER TABLE stsync_node DROP COLUMN equal_once",
        "ALTER TABLE stsync_node DROP COLUMN started_ms",
        "ALTER TABLE stsync_reports DROP COLUMN proven",
        "DROP TABLE stsync_sessions",
    )
    for words in (("status",), ("run",), ("ready",), ("quarantine", "list")):
        done = st2.command(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert "another version (0.1.0;" in done.stderr
        assert "stsync install" in done.stderr
    assert st2.command("install").returncode == 0
    assert st2.rows("SELECT proven_ms, equal_once, started_ms FROM stsync_node") == [(None, 0, None)]
    cluster.start()
    cluster.primary.execute("INSERT INTO unit (id, name) VALUES (1, 'one')")
    cluster.wait_equal()
    ready = st2.command("ready")
    assert ready.returncode == 1
    assert "stsync sync" in ready.stdout
    assert cluster.primary.command("sync").returncode == 0
    wait_for(lambda: st2.command("ready").returncode == 0, "ready")
