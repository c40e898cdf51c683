"""Synchronize All from the command to the databases' own comparison: real services, broker and databases (DESIGN §8)."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from common import sessions
from common.session import Mode
from tests.faults.conftest import frozen, mostly
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster


def fill(cluster: Cluster, accounts: int = 300) -> None:
    """Rows on the primary, and whatever the log makes of them on the secondaries."""
    units = ", ".join(f"({i}, 'unit {i}', NULL)" for i in range(1, 21))
    names = ", ".join(f"({i}, 'account {i}', {1 + i % 20}, 'note {i}', 'seen at {i}')" for i in range(accounts))
    logins = ", ".join(f"({i}, 'login {i}', 'digest')" for i in range(0, accounts, 2))
    cluster.primary.execute(
        f"INSERT INTO unit (id, name, parent) VALUES {units}",
        "UPDATE unit SET parent = 1 WHERE id > 10",
        f"INSERT INTO account (id, name, unit_id, note, last_login) VALUES {names}",
        f"INSERT INTO login (account_id, name, digest) VALUES {logins}",
        "INSERT INTO param (name, node, val, islocal) VALUES ('p', 'n', 'v', 0), ('q', 'n', 'primary''s own', 1)",
    )
    cluster.wait_equal()


def spoil(node: Node, seed: int) -> None:
    """A secondary as it must not be: rows missing, too many and changed, unique values in each other's way, an emptied table."""
    dice = random.Random(seed)
    some = sorted(dice.sample(range(300), 60))
    gone, changed, renamed = some[:20], some[20:40], some[40:]
    low = ", ".join(map(str, gone))
    node.execute(f"DELETE FROM login WHERE account_id IN ({low})", f"DELETE FROM account WHERE id IN ({low})")
    for one in changed:
        node.execute("UPDATE account SET note = :note, last_login = 'here' WHERE id = :id", note=f"x{one}", id=one)
    node.execute("UPDATE account SET name = 'aside' WHERE id = :id", id=renamed[0])  # three names in a circle
    node.execute("UPDATE account SET name = :name WHERE id = :id", name=f"account {renamed[0]}", id=renamed[1])
    node.execute("UPDATE account SET name = :name WHERE id = :id", name=f"account {renamed[1]}", id=renamed[0])
    for i, name in enumerate(gone[:5]):  # another row has the name that a missing one needs
        node.execute("INSERT INTO account (id, name, unit_id) VALUES (:id, :name, 3)", id=9000 + i, name=f"account {name}")
    node.execute("INSERT INTO unit (id, name, parent) VALUES (900, 'only here', 2), (901, 'and here', 900)")
    node.execute("UPDATE account SET unit_id = 901 WHERE id = :id", id=renamed[2])
    node.execute(
        "DELETE FROM param WHERE islocal = 0", "INSERT INTO param (name, node, val, islocal) VALUES ('own', 'n', 'w', 1)"
    )
    node.execute("INSERT INTO audit (id, what) VALUES (1, 'kept')")


def run(node: Node, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = node.command(*arguments, "--json")
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


def of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in document["nodes"] if node["name"] == name)
    return found


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 21))])
def test_every_secondary_is_equal_afterwards_and_keeps_what_is_its_own(cluster: Cluster, seed: int) -> None:
    """TRAPS 28, 32; DOMAIN §8."""
    fill(cluster)
    for node in cluster.secondaries:
        spoil(node, seed)
    assert cluster.differences()
    code, document = run(cluster.primary, "sync")
    assert code == 0, document
    assert [node["result"] for node in document["nodes"]] == ["done", "done"]
    assert cluster.differences() == []
    for node in cluster.secondaries:
        assert node.rows("SELECT what FROM audit") == [("kept",)]
        assert node.rows("SELECT val FROM param WHERE islocal = 1") == [("w",)]
        seen = dict(node.rows("SELECT last_login, count(*) FROM account WHERE last_login IS NOT NULL GROUP BY last_login"))
        assert seen == {"here": 20}  # an excluded column is as it was
        assert node.sequence() == document["position"]["sequence"]
        assert node.rows("SELECT count(*) FROM stsync_outbox") == [(0,)]
    cluster.primary.execute("UPDATE account SET note = 'after' WHERE id < 50")
    cluster.wait_equal()
    assert all(one["last_full_sync"] for one in cluster.primary.status()["nodes"])


def test_a_rehearsal_tells_what_would_change_and_changes_nothing(cluster: Cluster) -> None:
    fill(cluster)
    st2 = cluster.nodes["st2"]
    st2.execute("DELETE FROM login", "DELETE FROM account WHERE id = 7", "UPDATE account SET note = 'x' WHERE id = 8")
    st2.execute("INSERT INTO account (id, name) VALUES (777, 'extra')")
    before = cluster.differences()
    code, document = run(cluster.primary, "sync", "--dry-run")
    assert code == 1
    assert cluster.differences() == before
    tables = {one["table"]: one for one in of(document, "st2")["tables"]}
    assert {name: (one["rows_missing"], one["rows_extra"], one["rows_different"]) for name, one in tables.items()} == {
        "account": (1, 1, 1),
        "login": (150, 0, 0),
    }
    keys = tables["account"]["keys"]
    assert [json.loads(key) for key in (*keys["missing"], *keys["extra"], *keys["different"])] in (
        [["7"], ["777"], ["8"]],
        [[7], [777], [8]],
    )
    first = [int(json.loads(key)[0]) for key in tables["login"]["keys"]["missing"]]
    assert first == list(range(0, 40, 2)), "of a table that is empty there, the primary names some"
    assert of(document, "st3")["equal"] is True
    assert of(document, "st3")["tables"] == []
    whole = run(cluster.primary, "sync", "--dry-run", "--full")[1]
    assert [of(whole, name)["tables"] for name in ("st2", "st3")] == [
        of(document, name)["tables"] for name in ("st2", "st3")
    ]
    told = cluster.primary.command("sync", "--dry-run").stdout
    assert "table account" in told
    assert "1 missing" in told


def test_a_verification_finds_a_single_row_while_writers_go_on(cluster: Cluster) -> None:
    fill(cluster)
    assert run(cluster.primary, "verify")[0] == 0
    with writing(cluster.primary) as counted:
        wait_for(lambda: counted[0] > 20, "writers at work")
        code, document = run(cluster.primary, "verify")
        assert (code, document["equal"]) == (0, True), document
        cluster.nodes["st3"].execute("UPDATE login SET digest = 'forged' WHERE account_id = 4")
        code, document = run(cluster.primary, "verify")
    assert (code, document["equal"]) == (1, False)
    assert of(document, "st2")["equal"] is True
    (table,) = of(document, "st3")["tables"]
    assert (table["table"], table["rows_different"], table["rows_missing"], table["rows_extra"]) == ("login", 1, 0, 0)
    status = {one["name"]: one for one in cluster.primary.status()["nodes"]}
    assert status["st3"]["state"] == "needs_full_sync"
    assert "drift" in status["st3"]["reason"]
    assert run(cluster.primary, "sync")[0] == 0
    cluster.wait_equal()


def test_writers_are_not_blocked_and_lose_nothing(cluster: Cluster) -> None:
    """TRAPS 7, 12: what is committed during the session arrives after it, once."""
    fill(cluster)
    for node in cluster.secondaries:
        spoil(node, 5)
    with writing(cluster.primary) as counted:
        wait_for(lambda: counted[0] > 20, "writers at work")
        began = counted[0]
        code, document = run(cluster.primary, "sync")
        assert code == 0, document
        assert counted[0] > began
        wait_for(lambda: counted[0] > began + 50, "writers still at work")
    cluster.wait_equal()
    assert run(cluster.primary, "verify")[0] == 0


@pytest.mark.long
def test_two_hundred_transactions_a_second_go_on_through_one_after_the_other(cluster: Cluster) -> None:
    fill(cluster)
    began, pace = time.monotonic(), [writing(cluster.primary, 0.02, first=100_000 * n) for n in range(1, 6)]
    with ExitStack() as stack:
        counts = [stack.enter_context(one) for one in pace]
        for seed in range(6, 14):
            for node in cluster.secondaries:
                node.execute(f"UPDATE login SET digest = 'wrong {seed}' WHERE account_id < 100")
            code, document = run(cluster.primary, "sync", *(["--full"] if seed % 2 else []))
            assert code == 0, document
    done, seconds = sum(one[0] for one in counts), time.monotonic() - began
    cluster.wait_equal()
    assert run(cluster.primary, "verify")[0] == 0
    assert done > 100 * seconds, f"{done} transactions in {seconds:.0f} s: too few to show anything"


def test_it_is_refused_where_it_cannot_be_served(cluster: Cluster) -> None:
    """INTERFACE: exit 3 on a secondary, naming the primary; where the service does not run; while another session runs."""
    fill(cluster, 10)
    for words in (("sync",), ("sync", "--dry-run"), ("verify",)):
        done = cluster.nodes["st2"].command(*words)
        assert done.returncode == 3
        assert "st1" in done.stderr
    cluster.primary.stop()
    done = cluster.primary.command("sync")
    assert done.returncode == 3
    assert "does not run" in done.stderr
    asked = cluster.primary.command("sync", "--no-wait", "--json")
    assert asked.returncode == 0, asked.stderr
    document = json.loads(asked.stdout)
    second = cluster.primary.command("sync", "--no-wait")
    assert second.returncode == 3
    assert document["session"][:8] in second.stderr
    cluster.primary.start()
    wait_for(
        lambda: cluster.primary.rows("SELECT phase FROM stsync_sessions") == [("resumed",)], "the session that was asked for"
    )
    cluster.wait_equal()


def test_another_schema_on_one_node_is_told_and_the_others_complete(new_cluster: MakeCluster, database_kind: str) -> None:
    cluster = new_cluster(database_kind)
    cluster.nodes["st3"].execute("ALTER TABLE account ADD COLUMN more VARCHAR(5)")
    if database_kind == "postgresql":
        cluster.nodes["st3"].execute("ALTER TABLE unit ALTER COLUMN name TYPE VARCHAR(70)")
    cluster.nodes["st3"].command("install")
    cluster.start()
    cluster.primary.execute("INSERT INTO unit (id, name) VALUES (1, 'one')")
    cluster.nodes["st2"].execute("INSERT INTO unit (id, name) VALUES (2, 'two')")
    code, document = run(cluster.primary, "sync")
    assert code == 1
    assert of(document, "st2")["result"] == "done"
    refused = of(document, "st3")
    assert refused["result"] == "refused"
    assert "account" in refused["reason"]
    assert "more" in refused["reason"]
    if database_kind == "postgresql":
        assert (
            "unit: column name is character varying(70) here and character varying(80) on the primary" in refused["reason"]
        )
    assert cluster.nodes["st2"].rows("SELECT id FROM unit") == [(1,)]


def test_a_schema_that_was_changed_behind_our_back_is_told_on_either_side(cluster: Cluster) -> None:
    """Without `install` since, and while nothing else happens."""
    cluster.primary.execute("INSERT INTO unit (id, name) VALUES (1, 'one')")
    cluster.wait_equal()
    st3 = cluster.nodes["st3"]
    st3.execute("ALTER TABLE account ADD COLUMN more VARCHAR(5)")
    code, document = run(cluster.primary, "sync")
    assert (code, of(document, "st2")["result"], of(document, "st3")["result"]) == (1, "done", "refused")
    assert "table account has a column more here" in of(document, "st3")["reason"]
    wait_for(lambda: st3.status()["state"] == "needs_full_sync", "it knows itself")
    assert "table account has a column more here" in st3.status()["reason"]
    assert st3.command("ready").returncode == 1
    assert st3.command("install").returncode == 0
    for node in (cluster.primary, cluster.nodes["st2"]):
        node.execute("ALTER TABLE account ADD COLUMN more VARCHAR(5)")
    code, document = run(cluster.primary, "sync")
    assert (code, [one["result"] for one in document["nodes"]]) == (0, ["done", "done"])
    for node in (cluster.primary, cluster.nodes["st2"]):
        assert node.command("install").returncode == 0
    code, document = run(cluster.primary, "sync")
    assert (code, [one["result"] for one in document["nodes"]]) == (0, ["done", "done"])
    wait_for(lambda: st3.status()["state"] == "in_sync", "it is as the others are")


@mostly("sqlite")
def test_a_node_that_is_away_is_left_out_and_told(cluster: Cluster) -> None:
    fill(cluster, 20)
    cluster.nodes["st3"].kill()
    cluster.primary.execute("UPDATE stsync_reports SET heard_ms = heard_ms - 60000 WHERE name = 'st3'")
    cluster.nodes["st2"].execute("DELETE FROM login")
    code, document = run(cluster.primary, "sync")
    assert code == 1
    assert (of(document, "st2")["result"], of(document, "st3")["result"]) == ("done", "unreachable")
    assert "60 s" in of(document, "st3")["reason"] or "nothing was heard" in of(document, "st3")["reason"]
    cluster.nodes["st3"].start()
    cluster.wait_equal()


@contextmanager
def writing(node: Node, pace_s: float = 0.005, first: int = 10_000) -> Iterator[list[int]]:
    """A program that changes single rows all the time; how many it has committed."""
    counted = [0]
    stop = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            while not stop.is_set():
                counted[0] += 1
                one = counted[0]
                if one % 3 == 0:
                    node.execute("UPDATE account SET note = :note WHERE id = :id", note=f"w{one}", id=one % 10)
                else:
                    node.execute("INSERT INTO unit (id, name) VALUES (:id, :name)", id=first + one, name=f"w{first + one}")
                time.sleep(pace_s)
        except BaseException as exc:
            errors.append(exc)
            raise

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield counted
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_a_text_that_is_none_is_told_and_ends_nothing_else(new_cluster: MakeCluster) -> None:
    """SQLite takes any bytes for a text (TRAPS 30)."""
    cluster = new_cluster("sqlite")
    cluster.start()
    fill(cluster, 10)
    cluster.primary.execute("UPDATE account SET note = CAST(X'61ff62' AS TEXT) WHERE id = 3")
    code, document = run(cluster.primary, "sync")
    assert code == 1
    assert document["phase"] == "failed"
    assert "table account" in document["reason"]
    assert "UTF-8" in document["reason"]
    cluster.primary.execute("UPDATE account SET note = 'text again' WHERE id = 3")
    assert run(cluster.primary, "sync")[0] == 0
    cluster.wait_equal()
    cluster.nodes["st2"].execute("INSERT INTO param (name, node, val) VALUES (CAST(X'61ff62' AS TEXT), 'n', 'v')")
    code, document = run(cluster.primary, "verify")
    assert (code, of(document, "st2")["tables"][0]["rows_extra"]) == (1, 1)
    code, document = run(cluster.primary, "sync")
    assert code in (0, 1), document
    assert all(node.process is not None and node.process.poll() is None for node in cluster.nodes.values())


def test_a_reader_sees_the_old_configuration_or_the_new_one_and_waits_for_neither(cluster: Cluster) -> None:
    """DESIGN §8, step 5. On SQLite, too, in WAL."""
    fill(cluster)
    st2 = cluster.nodes["st2"]
    cluster.primary.execute(
        "UPDATE account SET note = 'new'", "UPDATE login SET digest = 'new'", "UPDATE unit SET parent = 2 WHERE id > 10"
    )
    cluster.wait_equal()
    st2.execute("UPDATE account SET note = 'old'", "UPDATE login SET digest = 'old'")
    st2.execute("DELETE FROM stsync_outbox")
    seen: set[tuple[str, ...]] = set()
    slowest = 0.0
    stop = threading.Event()

    def read() -> None:
        nonlocal slowest
        while not stop.is_set():
            begun = time.monotonic()
            found = st2.rows("SELECT 'note', note FROM account UNION SELECT 'digest', digest FROM login")  # one snapshot
            slowest = max(slowest, time.monotonic() - begun)
            seen.add(tuple(sorted({value for _, value in found})))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: seen, "a first look")
        code, document = run(cluster.primary, "sync")
        wait_for(lambda: ("new",) in seen, "what is new")
    finally:
        stop.set()
        reader.join()
    assert code == 0, document
    assert seen == {("old",), ("new",)}
    assert slowest < 2.0


def test_full_sends_every_row_and_comes_to_the_same(cluster: Cluster) -> None:
    fill(cluster, 100)
    cluster.nodes["st2"].execute("DELETE FROM login", "UPDATE account SET last_login = 'here'")
    code, document = run(cluster.primary, "sync", "--full")
    assert code == 0, document
    assert of(document, "st3")["rows_received"] == 20 + 100 + 50 + 1
    assert cluster.differences() == []
    assert cluster.nodes["st2"].rows("SELECT DISTINCT last_login FROM account") == [("here",)]


@mostly("sqlite")
def test_a_verification_that_nobody_asked_for_gives_way(cluster: Cluster) -> None:
    fill(cluster, 20)
    st3 = cluster.nodes["st3"].process
    assert st3 is not None
    with frozen(st3):  # it would be waited for
        with cluster.primary.database.connect() as connection:
            number = sessions.ask(connection, Mode.VERIFY, cause=sessions.CLOCK, timeout_s=600.0)
        code, document = run(cluster.primary, "sync")
        assert (code, of(document, "st2")["result"]) == (1, "done")
        ((phase, reason),) = cluster.primary.rows("SELECT phase, reason FROM stsync_sessions WHERE id = :id", id=number)
        assert (phase, reason) == ("failed", "it was cancelled")
    wait_for(lambda: cluster.primary.status()["nodes"][1]["state"] != "offline", "st3 is heard again")
    assert run(cluster.primary, "sync")[0] == 0
    cluster.wait_equal()


def test_of_two_who_ask_at_once_one_is_refused(cluster: Cluster) -> None:
    fill(cluster, 100)
    done = []
    threads = [threading.Thread(target=lambda: done.append(cluster.primary.command("sync", "--json"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(one.returncode for one in done)
    assert codes[0] == 0
    assert set(codes) <= {0, 3}
    for one in done:
        assert one.returncode == 0 or "another session runs" in one.stderr
    overlapping = cluster.primary.rows(
        "SELECT count(*) FROM stsync_sessions a JOIN stsync_sessions b ON a.id < b.id AND a.ended_ms > b.began_ms"
    )
    assert overlapping == [(0,)]
