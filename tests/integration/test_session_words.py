"""What a secondary takes for a word of a session, and what becomes of it: real keys and databases, in this process, no broker
(TRAPS 7, 34)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common import nodestate
from common.broker import Delivery
from common.changes import GENESIS
from common.errors import Unavailable
from common.session import DIGESTS, Begin, Cancel, Mode, parse_said
from common.wire import Heartbeat, MessageKind, encode_body
from consumer import synchronizer
from consumer.applier import Applier
from consumer.node_session import unlike
from consumer.proof import Compared
from consumer.synchronizer import Begun, Over
from publisher.relay import Relay
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, QUIET, Cluster, make_cluster, wait_for
from tests.pipeline import _built
from tests.session_words import AT, HASH, ROWS, SCHEMA, Partly, Primary, Secondary


@pytest.fixture
def pair(tmp_path: Path, new_database: NewDatabase) -> Iterator[Cluster]:
    """A primary with two rows, a third node, and a secondary that has none; it falls silent soon."""
    made = make_cluster(
        tmp_path / "c",
        "sqlite",
        NO_BROKER,
        new_database,
        schema=SCHEMA,
        tables="item\n",
        settings=QUIET + "silent_s = 3.0\n",
    )
    made.primary.execute("INSERT INTO item VALUES (1, 'one'), (2, 'two')")
    yield made
    for node in made.nodes.values():
        node.close()


@pytest.fixture
def st2(pair: Cluster) -> Iterator[Secondary]:
    made = Secondary(pair)
    yield made
    made.close()


def test_all_that_the_primary_says_makes_it_equal_at_the_position(pair: Cluster, st2: Secondary) -> None:
    primary = Primary(pair)
    st2.node.execute(
        "INSERT INTO stsync_quarantine (epoch, sequence, table_name, kind, columns_json, key_json, row_json, reason, attempts,"
        " first_ms, last_ms) VALUES (1, 1, 'item', 'I', '[]', '[]', '[]', 'why', 1, 1, 1)"
    )
    st2.begin(primary)
    st2.hear(*primary.all())
    assert st2.over().installed
    assert st2.rows() == ROWS
    found = st2.node.rows("SELECT epoch, sequence, hash, state, doubt, proven_ms IS NULL, equal_once FROM stsync_node")
    assert found == [(1, AT, HASH, "catching_up", None, 0, 1)]
    assert st2.node.rows("SELECT reason FROM stsync_quarantine") == []
    assert st2.refused == []


def test_who_makes_other_digests_takes_no_part_and_says_so(pair: Cluster, st2: Secondary) -> None:
    """A rolling upgrade: all rows would seem to differ."""
    primary = Primary(pair)
    primary.begin = replace(primary.begin, digests=DIGESTS + 1)
    st2.begin(primary)
    over = st2.over()
    assert not over.installed
    assert "run the same version on all nodes" in (over.refused or "")
    st2.hear(*primary.all())
    st2.wait_heard(primary)
    assert (st2.rows(), st2.node.sequence()) == ([], 0)
    assert "run the same version on all nodes" in (unlike(primary.begin, _built(st2.node)[1].tables, "st2") or "")
    said = parse_said(encode_body(primary.begin))
    assert isinstance(said, Begin)
    assert said.digests == DIGESTS + 1


def test_nothing_is_installed_before_all_has_come(pair: Cluster, st2: Secondary) -> None:
    primary = Primary(pair)
    manifest, one, other, end = primary.all()
    st2.begin(primary)
    st2.hear(manifest, end, other, end)
    st2.wait_heard(primary)
    assert st2.synchronizer.over() is None
    assert (st2.rows(), st2.node.sequence()) == ([], 0)
    st2.hear(one)
    assert st2.over().installed
    assert st2.rows() == ROWS


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ({"session": b"\1" * 16}, []),
        ({"epoch": 1}, []),
        ({"by": "st3"}, ["sender"]),
        ({"kind": MessageKind.HEARTBEAT}, ["sender"]),
        ({"ago_s": 4000.0}, ["expired"]),
    ],
    ids=["another session", "a former epoch", "another sender", "another kind", "expired"],
)
def test_a_session_is_not_ended_by_a_word_that_is_not_its_own(
    pair: Cluster, st2: Secondary, how: dict[str, Any], refused: list[str]
) -> None:
    primary = Primary(pair)
    st2.begin(primary, epoch=2)
    messages = [primary.say(said, number, epoch=2) for number, said in enumerate(primary.rest, 2)]
    st2.hear(messages[0], primary.say(Cancel("not its own"), **{"epoch": 2} | how), *messages[1:])
    assert st2.over().installed
    assert st2.rows() == ROWS
    assert st2.refused == refused


def test_the_primary_can_end_it_until_it_is_installed_and_not_after(pair: Cluster, st2: Secondary) -> None:
    first, second = Primary(pair), Primary(pair)
    st2.begin(first)
    st2.hear(*first.all()[:-1], first.say(Cancel("enough")), first.all()[-1])
    assert st2.over() == Over(installed=False, differs=True)
    assert (st2.rows(), st2.node.sequence()) == ([], 0)
    st2.begin(second)
    st2.hear(*second.all(), second.say(Cancel("too late")))
    st2.wait_heard(second)
    assert st2.over().installed
    assert st2.synchronizer.over() is None
    assert (st2.rows(), st2.node.sequence()) == (ROWS, AT)


def test_who_hears_nothing_of_the_primary_gives_it_up(pair: Cluster, st2: Secondary) -> None:
    primary = Primary(pair)
    st2.begin(primary)
    st2.hear(primary.all()[0])
    assert st2.over() == Over(installed=False, differs=True)
    assert st2.rows() == []


def test_a_session_that_was_over_before_it_began_here_is_soon_given_up(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary says each second that one goes on."""
    monkeypatch.setattr(synchronizer, "_FIRST_WORD_S", 0.5)
    config = pair.nodes["st2"].config
    config.write_text(config.read_text().replace("silent_s = 3.0", "silent_s = 1000.0"))
    st2, primary = Secondary(pair), Primary(pair)
    try:
        st2.begin(primary)
        assert st2.over() == Over(installed=False)
    finally:
        st2.close()


def test_what_is_not_equal_in_the_end_is_not_installed(pair: Cluster, st2: Secondary) -> None:
    """Somebody's own trigger changes what is written."""
    st2.node.execute("CREATE TRIGGER own AFTER INSERT ON item BEGIN UPDATE item SET note = 'own' WHERE id = NEW.id; END")
    primary = Primary(pair)
    st2.begin(primary)
    st2.hear(*primary.all())
    assert st2.over() == Over(installed=False, differs=True)
    assert (st2.rows(), st2.node.sequence()) == ([], 0)


@pytest.mark.parametrize("captured", [True, False])
def test_a_change_made_here_since_the_comparison_is_noticed(pair: Cluster, st2: Secondary, *, captured: bool) -> None:
    """Of a row that was equal, in another bucket than the one that is mended; of what nothing captures this session knows nothing."""
    fill = "INSERT INTO item VALUES " + ", ".join(f"({one}, 'n{one}')" for one in range(3, 90))
    pair.primary.execute(fill)
    st2.node.execute("INSERT INTO item VALUES (1, 'other'), (2, 'two')", fill, "DELETE FROM stsync_outbox")
    primary = Partly(pair, 6)
    st2.begin(primary)
    *most, end = primary.all()
    st2.hear(*most)
    st2.wait_heard(primary)
    st2.node.execute(f"UPDATE item SET note = 'edited' WHERE id = {primary.others[0]}")
    if not captured:
        st2.node.execute("DELETE FROM stsync_outbox")
    st2.hear(end)
    assert st2.over() == Over(installed=not captured, differs=captured)
    assert st2.node.rows("SELECT note FROM item WHERE id = 1") == [("other",) if captured else ("one",)]


def test_it_ends_where_install_has_run_meanwhile(pair: Cluster, st2: Secondary) -> None:
    primary = Primary(pair)
    st2.begin(primary)
    st2.hear(primary.all()[0])
    st2.wait_heard(primary)
    st2.node.execute("UPDATE stsync_node SET installed_ms = installed_ms + 1")
    st2.hear(*primary.all()[1:])
    assert st2.over() == Over(installed=False, differs=True)
    assert (st2.rows(), st2.node.sequence()) == ([], 0)


@pytest.mark.parametrize("mode", [Mode.VERIFY, Mode.REHEARSE])
def test_who_is_only_compared_changes_nothing_whatever_is_sent(pair: Cluster, st2: Secondary, mode: Mode) -> None:
    primary = Primary(pair, mode)
    st2.begin(primary)
    st2.hear(*primary.all())
    wait_for(lambda: st2.compared, "what was found")
    assert not st2.compared[0].equal
    assert (st2.rows(), st2.node.sequence(), st2.synchronizer.over()) == ([], 0, None)


class Asked:
    """Sessions as the applier hands them over (applier.Sessions)."""

    def __init__(self) -> None:
        self.begun: list[Begun] = []
        self.refused: list[tuple[str, bool]] = []
        self.known = False

    def begin(self, begun: Begun) -> None:
        if begun.snapshot is not None:
            begun.snapshot.close()
        self.begun.append(begun)

    def knows(self, begun: Begun) -> bool:
        del begun
        return self.known

    def refuse(self, begun: Begun, sequence: int, why: str, *, again: bool) -> None:
        del begun, sequence
        self.refused.append((why, again))


class Log:
    """st2's applier, and what arrives in its queue."""

    def __init__(self, cluster: Cluster) -> None:
        self.node = cluster.nodes["st2"]
        self.asked = Asked()
        parts, lists = _built(self.node)
        self.applier = Applier(
            parts.database, parts.settings, parts.reader, lists, "st1", ask=lambda _first, _limit: True, sessions=self.asked
        )
        self.connection = parts.database.open()
        self.applier.load(self.connection)

    def arrive(self, *messages: bytes) -> int:
        found = [Delivery(one, tag, None, redelivered=False, generation=1) for tag, one in enumerate(messages)]
        handled = self.applier.work(self.connection, found)
        self.connection.rollback()
        return handled

    def refusals(self) -> list[tuple[Any, ...]]:
        return self.node.rows("SELECT kind, count FROM stsync_refusals")

    def state(self) -> tuple[Any, ...]:
        return self.node.rows("SELECT state, doubt FROM stsync_node")[0]


@pytest.fixture
def log(pair: Cluster) -> Iterator[Log]:
    made = Log(pair)
    yield made
    made.connection.close()


Begins = Callable[..., bytes]


@pytest.fixture
def begins(pair: Cluster) -> Begins:
    """The first word of a session."""

    def say(
        mode: Mode = Mode.SYNC,
        *,
        number: int = 1,
        nodes: Sequence[str] = ("st2", "st3"),
        at: tuple[int, bytes] = (AT, HASH),
        ago_s: float = 0.0,
    ) -> bytes:
        sequence, hash_ = at
        return Primary(pair).say(Begin(number, mode, False, tuple(nodes), sequence, hash_, ()), 1, ago_s=ago_s)

    return say


def test_a_full_synchronization_brings_the_log_to_rest_and_what_follows_comes_again(log: Log, begins: Begins) -> None:
    assert log.arrive(begins(), begins(number=2)) == 1
    assert log.applier.paused
    assert log.state()[0] == "paused"
    assert len(log.asked.begun) == 1
    log.applier.resume(log.connection, Over(installed=False))
    assert not log.applier.paused
    assert log.state() == ("catching_up", None)


@pytest.mark.parametrize("mode", [Mode.VERIFY, Mode.REHEARSE])
def test_a_comparison_does_not_stop_the_log(log: Log, begins: Begins, mode: Mode) -> None:
    assert log.arrive(begins(mode, at=(0, GENESIS)), begins(mode, number=2, at=(0, GENESIS))) == 2
    assert not log.applier.paused
    assert log.state()[0] != "paused"
    assert [begun.begin.mode for begun in log.asked.begun] == [mode, mode]


def test_who_stands_elsewhere_is_not_compared_there(log: Log, begins: Begins) -> None:
    log.arrive(begins(Mode.VERIFY))
    log.arrive(begins(Mode.VERIFY, number=2, at=(0, HASH)))
    assert log.asked.begun == []
    assert [again for _, again in log.asked.refused] == [True, True]
    assert "not at 7" in log.asked.refused[0][0]


def test_a_session_begins_once_and_none_of_an_earlier_time_does(log: Log, begins: Begins) -> None:
    log.arrive(begins(number=5))
    log.applier.resume(log.connection, Over(installed=False))
    log.asked.known = True
    log.arrive(begins(number=5))
    assert (len(log.asked.begun), log.asked.refused, log.refusals()) == (1, [], [])
    log.arrive(begins(number=4))
    assert (len(log.asked.begun), log.refusals()) == (1, [("replayed", 1)])
    log.asked.known = False
    log.arrive(begins(number=5))
    assert len(log.asked.begun) == 1
    assert log.asked.refused == [("its service was started again meanwhile", False)]


def test_a_session_of_others_or_of_long_ago_does_not_begin_here(log: Log, begins: Begins) -> None:
    log.arrive(begins(number=5, nodes=("st3",)))
    assert log.refusals() == []
    log.arrive(begins(number=6, ago_s=4000.0))
    assert log.refusals() == [("expired", 1)]
    assert (log.asked.begun, log.applier.paused) == ([], False)


def test_a_session_that_failed_leaves_what_it_found(log: Log, begins: Begins) -> None:
    log.arrive(begins())
    log.applier.resume(log.connection, Over(installed=False, differs=True))
    assert log.state()[0] == "catching_up"
    assert "differs from the primary" in log.state()[1]


def test_what_is_known_of_the_primary_s_clock_outlasts_a_session(log: Log, begins: Begins) -> None:
    """Else what comes next is applied without a word of how late it was."""
    log.arrive(begins())
    assert log.applier._freshness.late_ms("st1", nodestate.now_ms()) is not None
    log.applier.resume(log.connection, Over(installed=False))
    assert log.applier._freshness.late_ms("st1", nodestate.now_ms()) is not None


def test_who_could_take_no_part_says_so_until_it_was_made_equal(log: Log, begins: Begins) -> None:
    """DESIGN §8: so it shows in this node's own status, too."""
    log.arrive(begins())
    log.applier.resume(log.connection, Over(installed=False, refused="table item has another column here"))
    assert log.state() == ("catching_up", "it was left out of a full synchronization: table item has another column here")
    assert not log.applier.standing().proven


def test_where_the_database_takes_nothing_the_others_are_told_at_once(log: Log, begins: Begins) -> None:
    """TRAPS 29: they do not pause until this node has been silent for long enough."""
    driver: Any = log.connection.connection.driver_connection
    driver.execute("PRAGMA query_only = ON")
    begin = begins()
    for refused in (0, 1):  # once it may have been the connection
        assert len(log.asked.refused) == 0
        with pytest.raises(Unavailable):
            log.arrive(begin)
        log.connection.rollback()
        assert len(log.asked.refused) == refused
    assert [again for _, again in log.asked.refused] == [False]
    assert "readonly" in log.asked.refused[0][0]
    assert not log.applier.paused
    driver.execute("PRAGMA query_only = OFF")
    log.arrive(begin)
    assert (log.asked.begun, log.applier.paused) == ([], False), "it goes on without this node"
    assert log.state()[1].startswith("it was left out of a full synchronization: it could take no part: ")
    log.arrive(begins(number=2))
    assert log.applier.paused


def test_who_needed_a_full_synchronization_before_one_that_failed_does_so_after(log: Log, begins: Begins) -> None:
    log.node.execute("UPDATE stsync_node SET state = 'needs_full_sync', reason = 'past retention'")
    log.applier.load(log.connection)
    log.arrive(begins())
    log.applier.resume(log.connection, Over(installed=False))
    assert log.node.rows("SELECT state, reason FROM stsync_node") == [("needs_full_sync", "past retention")]
    assert log.applier.standing().needs_full_sync == "past retention"
    log.arrive(begins(Mode.VERIFY, number=2, at=(0, GENESIS)))
    assert [again for _, again in log.asked.refused] == [False]
    assert len(log.asked.begun) == 1


def test_a_comparison_of_before_is_no_proof_of_who_needs_a_full_synchronization_by_now(log: Log) -> None:
    log.node.execute("UPDATE stsync_node SET state = 'needs_full_sync', reason = 'past retention'")
    log.applier.load(log.connection)
    log.applier.compared(Compared(True, [], log.applier._lists.present.installed_ms))
    log.arrive()
    assert not log.applier.standing().proven
    log.node.execute("UPDATE stsync_node SET state = 'catching_up', reason = NULL")
    log.applier.load(log.connection)
    log.applier.compared(Compared(True, [], log.applier._lists.present.installed_ms))
    log.arrive()
    assert log.applier.standing().proven


def test_what_the_queue_still_holds_of_before_the_position_of_a_session_is_no_attack(pair: Cluster, log: Log) -> None:
    parts, lists = _built(pair.primary)
    relay = Relay(parts.database, parts.settings.relay, parts.writer, lambda: lists.present, parts.state.position)
    drained = relay.drain()
    assert drained is not None
    relay.close()
    (batch,) = drained.batches
    log.node.execute("UPDATE stsync_node SET sequence = 1, hash = :hash", hash=batch.hash)
    log.applier.resume(log.connection, Over(installed=True))
    beat = encode_body(Heartbeat(1, 1, batch.hash, 1, 1, 0))
    log.arrive(parts.writer.write(MessageKind.HEARTBEAT, beat, epoch=1, sequence=1, expires_in_s=60.0), batch.message)
    assert log.refusals() == []
    log.applier.load(log.connection)
    assert log.applier.position == drained.position


def test_who_was_made_equal_to_a_primary_that_is_behind_follows_it_from_there(pair: Cluster, log: Log) -> None:
    """DOMAIN §7: a person has said that the restored one is right."""
    writer = _built(pair.primary)[0].writer

    def beat(number: int, sequence: int) -> bytes:
        body = encode_body(Heartbeat(number, sequence, HASH, 1, sequence, 0))
        return writer.write(MessageKind.HEARTBEAT, body, epoch=1, sequence=sequence, expires_in_s=60.0)

    log.node.execute("UPDATE stsync_node SET sequence = 5, hash = :hash", hash=HASH)
    log.applier.load(log.connection)
    log.arrive(beat(1, 5))
    log.node.execute("UPDATE stsync_node SET sequence = 3, head_sequence = 3")
    log.applier.resume(log.connection, Over(installed=True))
    log.arrive(beat(2, 3))
    assert log.applier.standing().needs_full_sync is None
    assert not log.applier.due
