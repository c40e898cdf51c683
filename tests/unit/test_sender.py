"""The sender: one publishes at a time, and whoever comes meanwhile neither waits nor tries again and again."""

import threading
from typing import Any, cast

import pytest

from common.topology import Topology
from publisher.composer import Batch
from publisher.sender import Posted, Sender


def test_who_finds_another_publishing_leaves_the_rest_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's thread, reading a long journal, must not be slowed down by the sender's (STYLE 12)."""
    sender = Sender(cast(Any, None), Topology("mft", ("st1", "st2"), "st1"), published=0, head=0)
    begun, go_on, pages = threading.Event(), threading.Event(), list[str]()

    def page() -> bool:
        pages.append(threading.current_thread().name)
        begun.set()
        return not go_on.wait(30)

    monkeypatch.setattr(sender, "_publish_page", page)
    busy = threading.Thread(target=sender.pump, name="busy")
    busy.start()
    assert begun.wait(30)
    for _ in range(3):
        sender.pump()
        assert not sender._wake.is_set(), "the sender's own thread would come back at once"
    assert pages == ["busy"]
    go_on.set()
    busy.join(30)
    assert pages == ["busy", "busy"], "it looked once more, for those that came"
    sender.pump()
    assert len(pages) == 3


class Link:
    """Takes so many messages more, and remembers them."""

    def __init__(self, room: int) -> None:
        self.free = room
        self.taken: list[bytes] = []

    def room(self) -> int:
        return self.free

    def publish(self, _exchange: str, _key: str, body: bytes, **_how: object) -> bool:
        if not self.free:
            return False
        self.free -= 1
        self.taken.append(body)
        return True


def sending(room: int) -> tuple[Sender, Link]:
    sender = Sender(cast(Any, None), Topology("mft", ("st1", "st2"), "st1"), published=0, head=0)
    link = Link(room)
    sender.use(cast(Any, link))
    batches = [Batch(number, b"", b"batch %d" % number) for number in (1, 2, 3)]
    sender.offer(batches, head=3)
    return sender, link


def test_a_session_begins_behind_the_batch_at_which_it_stands_and_before_the_next() -> None:
    sender, link = sending(room=0)
    sender.after(2, [Posted("x", "st2", b"begin"), Posted("x", "st3", b"begin")])
    for room, last in ((1, b"batch 1"), (1, b"batch 2"), (1, b"begin"), (1, b"begin"), (5, b"batch 3")):
        link.free = room
        sender.pump()
        assert link.taken[-1] == last
    assert link.taken == [b"batch 1", b"batch 2", b"begin", b"begin", b"batch 3"]


def test_a_session_at_the_end_of_the_log_begins_at_once() -> None:
    sender, link = sending(room=9)
    sender.after(3, [Posted("x", "", b"begin")])
    assert link.taken == [b"batch 1", b"batch 2", b"batch 3", b"begin"]


def test_a_session_that_is_over_before_it_could_begin_does_not_begin_later() -> None:
    sender, link = sending(room=1)
    sender.after(2, [Posted("x", "", b"begin")])
    sender.forget_between()
    link.free = 9
    sender.pump()
    assert link.taken == [b"batch 1", b"batch 2", b"batch 3"]
