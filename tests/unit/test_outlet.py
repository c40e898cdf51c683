"""What is said in a session goes no further ahead than the slowest node and the broker follow, and is sent again as it was."""

from typing import Any, cast

import pytest

from common.session import Alive, Cancel, Chunk, End, Said, parse_said
from common.topology import EVERY_NODE, Topology
from publisher import outlet as module
from publisher.outlet import Outlet, Sent

LONG = Chunk(0, 0, 1, "x" * 100)
SIZE = 150  # more than a message with that


class Plain:
    """Writes messages that hold nothing but what is said."""

    def write(self, _kind: object, body: bytes, **_header: object) -> bytes:
        return body


class Link:
    """Takes everything, and remembers it: to whom, what, and with which token."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Said, Sent | None]] = []

    def room(self) -> int:
        return 100

    def publish(self, _exchange: str, key: str, body: bytes, *, token: Sent | None = None, persistent: bool) -> bool:
        assert not persistent
        self.taken.append((key, parse_said(body), token))
        return True


class Speaking:
    """An outlet to a link, and what it was waited for."""

    def __init__(self, link: Link, then: Any) -> None:
        self.waited = 0
        self._then = then
        self.outlet = Outlet(
            cast(Any, link),
            Topology("mft", ("st1", "st2", "st3"), "st1"),
            cast(Any, Plain()),
            session=b"\1" * 16,
            epoch=1,
            node=None,
            lifetime_s=60.0,
            wait=self.wait,
        )

    def wait(self) -> None:
        self.waited += 1
        assert self.waited < 100
        self._then(self)


def test_it_waits_for_the_slowest_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD_BYTES", 3 * SIZE)
    received, link = [0], Link()

    def receives(said: Speaking) -> None:
        assert said.outlet.sent - received[0] <= 5
        received[0] += 1

    said = Speaking(link, receives)
    said.outlet.pace(lambda: received[0])
    for _ in range(20):
        said.outlet.say(LONG)
    assert received[0] >= 15
    assert [one for _, one, _ in link.taken] == [LONG] * 20
    said.outlet.close()


def test_what_no_message_could_be_without_goes_out_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD_BYTES", 10)
    said = Speaking(Link(), lambda _said: pytest.fail("nobody is behind"))
    sent = 0
    said.outlet.pace(lambda: sent)
    said.outlet.say(LONG)
    said.outlet.close()


def test_it_waits_for_the_broker_and_not_for_what_was_lost_with_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ON_THE_WAY_BYTES", 2 * SIZE)
    link = Link()

    def confirms(said: Speaking) -> None:
        token = link.taken[said.waited - 1][2]
        assert token is not None
        said.outlet.confirmed(token)

    said = Speaking(link, confirms)
    said.outlet.pace(lambda: 1 << 62)
    for _ in range(10):
        said.outlet.say(LONG)
    assert said.waited >= 6
    before = [token for _, _, token in link.taken if token is not None]
    said.outlet.reset()
    waited = said.waited
    for _ in range(2):
        said.outlet.say(LONG)
    assert said.waited == waited
    for token in before:
        said.outlet.confirmed(token)  # of the link that was lost
    assert said.outlet._on_the_way > SIZE
    said.outlet.close()


def test_what_somebody_lacks_is_sent_to_it_alone_and_as_it_was() -> None:
    link = Link()
    said = Speaking(link, lambda _said: None)
    said.outlet.pace(lambda: 1 << 62)
    numbered = [Chunk(0, 0, number, "x") for number in range(100)]
    for one in numbered:
        said.outlet.say(one)
    said.outlet.say(End())
    assert {key for key, _, _ in link.taken} == {EVERY_NODE}
    link.taken.clear()
    said.outlet.again("st2", 99)
    assert [(key, one) for key, one, _ in link.taken] == [("st2", numbered[98]), ("st2", numbered[99]), ("st2", End())]
    link.taken.clear()
    said.outlet.again("st2", 1)
    assert [one for _, one, _ in link.taken] == numbered[:64]
    said.outlet.close()


def test_what_only_counts_now_takes_no_number() -> None:
    link = Link()
    said = Speaking(link, lambda _said: None)
    said.outlet.alive({"st2": 4})
    said.outlet.cancel("enough")
    assert [one for _, one, _ in link.taken] == [Alive(0, {"st2": 4}), Cancel("enough")]
    assert said.outlet.sent == 0
    said.outlet.close()
