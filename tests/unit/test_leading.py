"""Whom the primary listens to while it leads a session, and what it sends again."""

import queue
from typing import Any, cast

from common.session import Answer, Done, Mode, Phase, Progress, Ready, Result
from common.sessions import Request
from publisher.leading import Heard, Leader
from publisher.members import Member

OURS, OTHERS = b"\1" * 16, b"\2" * 16
REQUEST = Request(
    1, OURS.hex(), Mode.SYNC, False, "operator", None, 60.0, Phase.PAUSING, None, 1, 1, None, False, (1, 1), {}
)  # fmt: skip


class Sent:
    """What is sent again, to whom and from which number on."""

    def __init__(self) -> None:
        self.again_: list[tuple[str, int]] = []
        self.cancelled: list[str] = []

    def cancel(self, reason: str) -> None:
        self.cancelled.append(reason)

    def again(self, node: str, first: int) -> None:
        self.again_.append((node, first))


def leading(*heard: tuple[str, bytes, int, Answer]) -> tuple[Leader, Sent]:
    """A session of st2 and st3 in which this was heard."""
    arrived: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    for one in heard:
        arrived.put(Heard(*one))
    leader = Leader(
        cast(Any, None),
        REQUEST,
        [Member("st2", 0.0), Member("st3", 0.0)],
        session=OURS,
        listed={},
        number=1,
        chunk_bytes=1024,
        heard=arrived,
        tick=lambda _phase: None,
    )
    leader._outlet = cast(Any, sent := Sent())
    leader.wait()
    return leader, sent


def test_only_answers_of_its_own_nodes_in_its_own_session_count() -> None:
    leader, _ = leading(
        ("st2", OTHERS, 1, Ready(7)),
        ("st4", OURS, 1, Ready(7)),
        ("st3", OURS, 1, Ready(7)),
        ("st3", OURS, 1, Ready(7, "no")),
    )
    assert leader.heard_of() == {"st2": 0, "st3": 1}
    assert leader.members["st2"].ready is None
    assert leader.members["st3"].ready == Ready(7)


def test_who_lacks_something_gets_it_again_once_for_each_time_that_it_asks() -> None:
    leader, sent = leading(("st2", OURS, 0, Progress(Phase.CHUNKS, 8, 0, again=9)))
    leader.wait()
    assert sent.again_ == [("st2", 9)]


def test_it_goes_as_far_ahead_as_the_slowest_that_still_takes_part() -> None:
    leader, _ = leading(
        ("st2", OURS, 0, Progress(Phase.CHUNKS, 8, 0)), ("st3", OURS, 0, Progress(Phase.CHUNKS, 3, 0)),
    )  # fmt: skip
    assert leader.slowest() == 3
    leader.members["st3"].take(1, Ready(7, "no"))
    assert leader.slowest() == 8


def test_who_speaks_has_a_moment_to_say_how_it_ended_there() -> None:
    leader, sent = leading(("st2", OURS, 1, Ready(7)), ("st3", OURS, 1, Ready(7, "no")))
    leader._heard.put(Heard("st2", OURS, 2, Done(Result.DONE, None, ())))
    leader._part_with("it was cancelled")
    assert sent.cancelled == ["it was cancelled"]
    assert leader.members["st2"].done == Done(Result.DONE, None, ())
