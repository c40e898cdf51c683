"""A service that dies at any named point of its work: afterwards all nodes are equal, each change came once, nothing is lost."""

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from deploy.servers import PrivateRabbitMQ
from tests import crashpoints
from tests.conftest import KINDS
from tests.faults.conftest import edit_here, wait_arrived, wait_told
from tests.faults.crashing import Crashing, Kept
from tests.harness import Node, wait_for
from tests.workload import writing

OF_THE_DATABASE = (  # where one database could behave unlike another
    "journal written",
    "outbox rows removed",
    "relay commits",
    "relay has committed",
    "pruned, not committed",
    "between statements",
    "between statements in a savepoint",
    "applied, position not moved",
    "position moved, not committed",
    "applier has committed",
    "committed, not acknowledged",
)
SMALL_JOURNAL = {"STSYNC_JOURNAL__MAX_BYTES": "65536", "STSYNC_JOURNAL__PRUNE_EVERY_S": "0.1"}
TIMES = 3  # not the first: something was done before
seeded = pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 5))])


def each(*groups: dict[str, crashpoints.Point]) -> pytest.MarkDecorator:
    """Each point on every database that it concerns; where little depends on which it is, beside SQLite in the long run only."""
    pairs = [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=[] if by_default(name, kind) else [pytest.mark.long])
        for group in groups
        for name, point in group.items()
        for kind in point.on
    ]
    return pytest.mark.parametrize(("point", "database_kind"), pairs)


def by_default(name: str, kind: str) -> bool:
    return kind == "sqlite" or name in OF_THE_DATABASE or crashpoints.POINTS[name].on != crashpoints.DATABASES


@pytest.fixture(scope="module")
def kept(
    rabbitmq: PrivateRabbitMQ, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    with ExitStack() as cleanup:
        yield Kept(request, rabbitmq, tmp_path_factory, cleanup)


@pytest.fixture
def crashing(kept: Kept, database_kind: str) -> Crashing:
    return kept.get(database_kind)


def wait_published(primary: Node, sequence: int) -> None:
    wait_told(
        lambda: primary.rows("SELECT 1 FROM stsync_node WHERE published >= :s", s=sequence),
        lambda: f"{sequence} published\n{primary.log[-2000:]}",
    )


@pytest.mark.parametrize("name", crashpoints.POINTS)
def test_every_point_names_a_function_of_the_product(name: str) -> None:
    owner, attribute = crashpoints.target(crashpoints.POINTS[name])
    assert callable(getattr(owner, attribute))


def dies_amid_writes(crashing: Crashing, point: str, name: str, seed: int = 1) -> None:
    times = TIMES if seed == 1 else random.Random(seed).randint(1, 8)
    victim = crashing.arm(point, name, times)
    with writing(crashing.cluster.primary, seed * 10 + int(name[2:]), enough=10, pace_s=0.1):
        crashing.wait_dead(victim, point)
        victim.start()
    crashing.assert_whole()


@seeded
@each(crashpoints.RELAY, crashpoints.SENDER)
def test_a_primary_that_dies_loses_and_repeats_nothing(crashing: Crashing, point: str, seed: int) -> None:
    """TRAPS 7, 8, 22: what was sequenced is journaled, what is journaled goes out under the same sequence."""
    dies_amid_writes(crashing, point, "st1", seed)


@each(crashpoints.TAKEN)
def test_a_primary_that_dies_over_a_long_drain_takes_nothing_twice(crashing: Crashing, point: str) -> None:
    """TRAPS 7, 8: before and after its transaction."""
    primary = crashing.cluster.primary
    victim = crashing.arm(point, "st1", 1)
    crashing.tick(1_500)
    crashing.wait_dead(victim, point)
    assert taken(primary) == int(bool(crashpoints.POINTS[point].ahead))
    victim.start()
    crashing.assert_whole()
    wait_swept(primary)
    crashing.assert_whole()


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
@each(crashpoints.SWEEP)
def test_a_primary_that_dies_as_it_removes_what_a_long_drain_took_goes_on_there(
    crashing: Crashing, point: str, times: int
) -> None:
    """TRAPS 1, 7, 8: in the transactions that follow a long drain when it is quiet, each of which removes some."""
    primary = crashing.cluster.primary
    victim = crashing.arm(point, "st1", times)
    crashing.tick(6_000)
    written = 6_001
    crashing.wait_dead(victim, point, quiet=True)
    assert (taken(primary), outbox(primary)) == {
        ("swept, not committed", 1): (1, written),
        ("sweep has committed", 1): (1, written - 5_000),
        ("swept, not committed", 2): (1, written - 5_000),
        ("sweep has committed", 2): (0, 0),
    }[point, times]
    crashing.tick()
    victim.start()
    wait_swept(primary)
    crashing.assert_whole()


def taken(primary: Node) -> int:
    return int(primary.rows("SELECT count(*) FROM stsync_taken")[0][0])


def outbox(primary: Node) -> int:
    return int(primary.rows("SELECT count(*) FROM stsync_outbox")[0][0])


def wait_swept(primary: Node) -> None:
    wait_told(lambda: (taken(primary), outbox(primary)) == (0, 0), lambda: (taken(primary), outbox(primary)))


@seeded
@each(crashpoints.APPLIER)
def test_a_secondary_that_dies_applies_each_change_once(crashing: Crashing, point: str, seed: int) -> None:
    """TRAPS 7, 10: the position moves with the data."""
    dies_amid_writes(crashing, point, "st2", seed)


@each(crashpoints.AT_LENGTH)
def test_a_service_that_dies_in_an_open_transaction_leaves_nothing_of_it(crashing: Crashing, point: str) -> None:
    """TRAPS 7, 8: the server has run what it was sent, and has to find out by itself that no COMMIT will come."""
    crashing.tick()
    victim = crashing.arm(point, node_of(point), 1)
    crashing.tick(more=120_000)  # sealed too, more than common.dialects.script.SMALL
    crashing.wait_dead(victim, point)
    victim.start()
    crashing.assert_whole()


@each(crashpoints.AT_ONCE)
def test_a_service_that_dies_before_it_knows_whether_its_commit_went(crashing: Crashing, point: str) -> None:
    """TRAPS 7, 8: the database has all of the transaction or nothing of it, and says which to whoever comes next."""
    victim = crashing.arm(point, node_of(point), TIMES)
    crashing.wait_dead(victim, point)
    victim.start()
    crashing.assert_whole()


def node_of(point: str) -> str:
    return "st1" if point.startswith("relay") else "st2"


@pytest.mark.parametrize("point", ["before apply"])
@pytest.mark.parametrize("database_kind", ["sqlite", *(pytest.param(one, marks=pytest.mark.long) for one in KINDS[1:])])
def test_what_a_secondary_did_not_commit_is_still_in_its_queue(crashing: Crashing, point: str) -> None:
    """TRAPS 7: it acknowledges after the commit; a catch-up would heal it, but retention is not without end."""
    primary, node = crashing.cluster.primary, crashing.cluster.nodes["st2"]
    victim = crashing.arm(point, "st2", TIMES)
    crashing.wait_dead(victim, point)
    wait_told(
        lambda: (
            primary.rows("SELECT 1 FROM stsync_node WHERE published = sequence")
            and not primary.rows("SELECT 1 FROM stsync_outbox")
        ),
        lambda: f"everything is confirmed\n{primary.log[-2000:]}",
    )
    batches = primary.sequence() - node.sequence()
    assert batches > 0
    assert crashing.waiting() >= batches
    victim.start()
    crashing.assert_whole()


@each(crashpoints.ANSWER)
def test_a_primary_that_dies_while_it_answers_is_asked_again(crashing: Crashing, point: str) -> None:
    """TRAPS 11: the rest comes from the one that takes its place."""
    primary, node = crashing.cluster.primary, crashing.cluster.nodes["st2"]
    node.kill()
    with writing(primary, 3, enough=10, pace_s=0.1):
        wait_published(primary, node.sequence() + 2 * TIMES)
        crashing.purge()
        victim = crashing.arm(point, "st1", TIMES)
        node.start()
        crashing.wait_dead(victim, point)
        victim.start()
    crashing.assert_whole()


@each(crashpoints.PRUNE)
def test_a_journal_whose_pruning_was_cut_short_is_whole(crashing: Crashing, point: str) -> None:
    """TRAPS 12: it is pruned from the front or not at all."""
    primary = crashing.cluster.primary
    crashing.tick()
    wait_published(primary, 1)
    before = primary.rows("SELECT min(sequence) FROM stsync_journal")
    with writing(primary, 4, enough=10, pace_s=0.1):
        victim = crashing.arm(point, "st1", 1, SMALL_JOURNAL)
        crashing.wait_dead(victim, point)
        assert primary.rows("SELECT min(sequence) FROM stsync_journal") == before
        victim.start(SMALL_JOURNAL)
        wait_for(lambda: primary.rows("SELECT min(sequence) FROM stsync_journal") > before, "a pruned journal")
    victim.kill()
    victim.start()  # with the journal that the other tests of this cluster count on
    crashing.assert_whole()


@pytest.mark.parametrize("database_kind", KINDS)
def test_the_quarantine_is_kept_and_retried_once_whenever_its_node_dies(crashing: Crashing, database_kind: str) -> None:
    """TRAPS 7, 29: while a change is added to it, and while it is taken out again."""
    added, retried = crashpoints.QUARANTINE
    primary, node = crashing.cluster.primary, crashing.cluster.nodes["st2"]
    edit_here(node, "INSERT INTO unit VALUES (900, 'taken', NULL)")
    victim = crashing.arm(added, "st2", 1)
    primary.execute("INSERT INTO unit VALUES (800, 'taken', NULL)")
    crashing.wait_dead(victim, added)
    assert node.rows("SELECT count(*) FROM stsync_quarantine") == [(0,)], "added without the position"
    victim = crashing.arm(retried, "st2", 1)
    wait_arrived(crashing.cluster)
    wait_for(lambda: node.rows("SELECT count(*) FROM stsync_quarantine") == [(1,)], "one change in the quarantine")
    edit_here(node, "DELETE FROM unit WHERE id = 900")
    crashing.wait_dead(victim, retried)
    assert node.rows("SELECT count(*) FROM stsync_quarantine") == [(1,)], "taken out without its row"
    assert node.rows("SELECT 1 FROM unit WHERE id = 800") == []
    victim.start()
    wait_for(lambda: node.rows("SELECT count(*) FROM stsync_quarantine") == [(0,)], "an empty quarantine")
    primary.execute("DELETE FROM unit WHERE id = 800")
    crashing.assert_whole()


@each(crashpoints.GIVE_UP)
def test_a_node_that_dies_as_it_gives_up_says_so_after_all(crashing: Crashing, point: str) -> None:
    """TRAPS 12: past retention, whatever it had not yet written down."""
    primary, node = crashing.cluster.primary, crashing.cluster.nodes["st2"]
    node.kill()
    first = primary.sequence()
    crashing.tick()
    wait_published(primary, first + 1)
    crashing.purge()
    crashing.tick()
    wait_for(lambda: primary.sequence() > first + 1, "another batch")
    primary.execute("DELETE FROM stsync_journal WHERE sequence <= :s", s=first + 1)
    victim = crashing.arm(point, "st2", 1)
    crashing.wait_dead(victim, point)
    assert node.rows("SELECT state FROM stsync_node") != [("needs_full_sync",)]
    victim.start()
    wait_told(
        lambda: node.rows("SELECT reason FROM stsync_node WHERE state = 'needs_full_sync'"),
        lambda: f"a reason\n{node.log[-3000:]}",
    )
    assert node.sequence() == first
