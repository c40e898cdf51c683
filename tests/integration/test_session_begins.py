"""A session's first word takes its place in the log: behind the batch of its position, whatever the link has room for (DESIGN §8)."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from common import nodestate, sessions
from common.bookkeeping import reports
from common.nodestate import State
from common.session import Answer, Begin, Mode, Phase, Ready, parse_said
from common.stop import Stop
from common.wire import MessageKind
from publisher import leading
from publisher.leading import Heard
from publisher.relay import Drained, Relay
from publisher.sender import Sender
from publisher.synchronization import Synchronization
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, make_cluster, wait_for
from tests.pipeline import _built


class Link:
    """The primary's link to the broker as far as the log goes: so much room, and what went out. What else is said in sessions it
    counts, and takes only where `all_said` is set."""

    def __init__(self, sessions_exchange: str) -> None:
        self.free = 0
        self.tried = 0
        self.all_said = False
        self.taken: list[bytes] = []
        self._sessions_exchange = sessions_exchange
        self._guard = threading.Lock()

    def room(self) -> int:
        return self.free

    def publish(self, exchange: str, _key: str, body: bytes, **_how: object) -> bool:
        with self._guard:
            if exchange == self._sessions_exchange:
                self.tried += 1
                return self.all_said
            if not self.free:
                return False
            self.free -= 1
            self.taken.append(body)
            return True


class Primary:
    """What leads sessions, in this process: three batches stand in the journal, and none is out yet."""

    def __init__(self, cluster: Cluster) -> None:
        self._parts, lists = _built(cluster.primary)
        self._reader = _built(cluster.nodes["st2"])[0].reader
        self.link = Link(self._parts.topology.sessions_exchange)
        self.sender = Sender(self._parts.database, self._parts.topology, 0, 0)
        self.sender.use(cast(Any, self.link))
        relay_settings = self._parts.settings.relay
        self.relay = Relay(
            self._parts.database, relay_settings, self._parts.writer, lambda: lists.present, self._parts.state.position
        )
        for number in (1, 2, 3):
            cluster.primary.execute(f"INSERT INTO item VALUES ({number})")
            drained = self.relay.drain()
            assert drained is not None
            self._drained(drained)
        self._sessions = Synchronization(
            self._parts.database,
            self._parts.settings,
            self._parts.topology,
            writer=self._parts.writer,
            link=cast(Any, self.link),
            relay=self.relay,
            sender=self.sender,
            lists=lists,
            drained=self._drained,
        )
        with self._parts.database.connect() as connection:
            connection.execute(
                reports.insert().values(
                    name="st2",
                    number=1,
                    state=State.IN_SYNC,
                    epoch=1,
                    sequence=0,
                    hash=b"",
                    quarantined=0,
                    refused_json="{}",
                    heard_ms=nodestate.now_ms() + 60_000,
                )
            )
            self.number = sessions.ask(connection, Mode.VERIFY, timeout_s=60.0)
        self._stop = Stop()
        self._thread = threading.Thread(target=partial(self._sessions.loop, self._stop))
        self._thread.start()

    def _drained(self, drained: Drained) -> None:
        self.sender.offer(drained.batches, drained.position.sequence)

    def phase(self) -> Phase:
        with self._parts.database.connect(read_only=True) as connection:
            found = sessions.read(connection, self.number)
            connection.rollback()
        assert found is not None
        return found.phase

    def cancel(self) -> None:
        with self._parts.database.connect() as connection:
            sessions.cancel(connection, self.number)

    def said(self) -> list[int]:
        """What went out: batches by their sequence, the first words of sessions as the negative of their position."""
        found = []
        for message in map(self._reader.verify, self.link.taken):
            if message.header.kind is MessageKind.BATCH:
                found.append(message.header.sequence)
            else:
                begin = parse_said(self._reader.open(message))
                assert isinstance(begin, Begin)
                found.append(-begin.sequence)
        return found

    def begun(self) -> list[bytes]:
        """The sessions whose first words went out, by their ids, in their order."""
        messages = map(self._reader.verify, self.link.taken)
        return list(dict.fromkeys(one.header.previous for one in messages if one.header.kind is MessageKind.SESSION))

    def wait_begun(self, known: int) -> bytes:
        """The first after so many."""
        found: list[bytes] = wait_for(lambda: self.begun()[known:], f"a session after {known}")
        return found[0]

    def answer(self, session: bytes, answer: Answer) -> None:
        self._sessions.answered(Heard("st2", session, 1, answer))

    def results(self) -> list[tuple[str, str]]:
        with self._parts.database.connect(read_only=True) as connection:
            found = sessions.read(connection, self.number)
            connection.rollback()
        assert found is not None
        return [(node["result"], node["reason"]) for node in found.progress["nodes"]]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.relay.close()


@pytest.fixture
def primary(tmp_path: Path, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Primary]:
    monkeypatch.setattr(leading, "_BEGIN_AGAIN_S", 0.05)
    monkeypatch.setattr(leading, "_PARTING_S", 0.2)
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    cluster = make_cluster(
        tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2")
    )
    made = Primary(cluster)
    yield made
    made.close()
    for node in cluster.nodes.values():
        node.close()


def test_the_first_word_goes_out_behind_the_batch_of_its_position_however_often_it_is_said(primary: Primary) -> None:
    wait_for(lambda: primary.link.tried, "a session that goes on")
    primary.link.free = 1
    tried = primary.link.tried
    wait_for(lambda: primary.link.tried > tried, "a second in which it is said again, were it out")
    primary.link.free = 9
    primary.sender.pump()
    wait_for(lambda: len(primary.said()) > 4, "the first word, and once more")
    assert primary.said()[:5] == [1, 2, 3, -3, -3]


def test_where_the_link_is_lost_the_first_word_is_said_again_behind_what_is_published_again(primary: Primary) -> None:
    wait_for(lambda: primary.link.tried, "a session that goes on")
    primary.link.free = 4
    primary.sender.pump()
    assert primary.said()[:4] == [1, 2, 3, -3]
    primary.sender.rewind()
    primary.link.free = 5
    wait_for(lambda: len(primary.said()) > 7, "all of it again")
    assert primary.said()[4:8] == [1, 2, 3, -3]


def test_a_session_that_is_over_before_its_first_word_is_out_does_not_begin_later(primary: Primary) -> None:
    wait_for(lambda: primary.link.tried, "a session that goes on")
    primary.cancel()
    wait_for(lambda: primary.phase().over, "the end")
    primary.link.free = 9
    primary.sender.pump()
    assert primary.said() == [1, 2, 3]


def test_whom_another_position_may_suit_is_asked_again_a_few_times(primary: Primary) -> None:
    primary.link.free, primary.link.all_said = 1000, True
    primary.sender.pump()
    for known in range(4):
        newest = primary.wait_begun(known)
        primary.answer(newest, Ready(2, "it stands elsewhere", again=True))
    wait_for(lambda: primary.phase().over, "the end")
    assert len(primary.begun()) == 4
    assert primary.results() == [("failed", "it stands elsewhere")]


def test_whom_no_other_position_suits_is_not_asked_again(primary: Primary) -> None:
    primary.link.free, primary.link.all_said = 1000, True
    primary.sender.pump()
    first = primary.wait_begun(0)
    primary.answer(first, Ready(2, "another schema"))
    wait_for(lambda: primary.phase().over, "the end")
    assert primary.begun() == [first]
    assert primary.results() == [("refused", "another schema")]
