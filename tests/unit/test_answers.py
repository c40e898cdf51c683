"""What a node answers in a session is said again until the primary has it, and no longer."""

from typing import Any, cast

import pytest

from common.session import Answer, Differ, Phase, Progress, Ready, parse_answer
from common.topology import Topology
from consumer import answers as module
from consumer.answers import Answers

FIRST, SECOND = b"\1" * 16, b"\2" * 16
FAR = Progress(Phase.CHUNKS, 3, 10)


class Plain:
    """Writes messages that tell what stood in their header, and what is said."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, int, int]] = []

    def write(
        self, _kind: object, body: bytes, *, epoch: int, sequence: int, previous: bytes, audience: str, expires_in_s: float
    ) -> bytes:
        assert (audience, expires_in_s > 0) == ("st1", True)
        self.headers.append((previous, epoch, sequence))
        return body


class Link:
    """Takes everything, and remembers it."""

    def __init__(self) -> None:
        self.taken: list[Answer] = []

    def publish(self, _exchange: str, _key: str, body: bytes, *, persistent: bool) -> bool:
        assert not persistent
        self.taken.append(parse_answer(body))
        return True


class Said:
    """Answers, and what became of them so far, told once."""

    def __init__(self) -> None:
        self._link, self._writer = Link(), Plain()
        topology = Topology("mft", ("st1", "st2"), "st1")
        self.answers = Answers(cast(Any, self._link), topology, cast(Any, self._writer), "st1")

    def since(self) -> list[tuple[bytes, int, int, Answer]]:
        found = [(*header, answer) for header, answer in zip(self._writer.headers, self._link.taken, strict=True)]
        self._writer.headers.clear()
        self._link.taken.clear()
        return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(module, "_AGAIN_S", -1.0)  # all of it should have been heard by now
    return Said()


def test_answers_are_numbered_and_said_again_until_they_were_heard(said: Said) -> None:
    said.answers.open(FIRST, 4)
    one, two = (FIRST, 4, 1, Ready(7)), (FIRST, 4, 2, Differ((), ()))
    said.answers.say(Ready(7))
    said.answers.say(Differ((), ()))
    assert said.since() == [one, two]
    said.answers.heard(0)
    assert said.since() == [one, two]
    said.answers.heard(1)
    assert said.since() == [two]
    said.answers.heard(2)
    said.answers.heard(0)
    assert said.since() == []


def test_what_may_be_on_its_way_is_not_said_again_yet(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 1000.0)
    said.answers.open(FIRST, 4)
    said.answers.say(Ready(7))
    said.since()
    said.answers.heard(0)
    assert said.since() == []


def test_how_far_it_is_takes_no_number_and_is_said_once(said: Said) -> None:
    said.answers.tell(FAR)
    assert said.since() == []  # there was no session yet
    said.answers.open(FIRST, 4)
    said.answers.tell(FAR)
    assert said.since() == [(FIRST, 4, 0, FAR)]
    said.answers.heard(0)
    assert said.since() == []


def test_another_session_begins_anew(said: Said) -> None:
    said.answers.open(FIRST, 4)
    said.answers.say(Ready(7))
    said.answers.open(SECOND, 5)
    said.since()
    said.answers.heard(0)
    assert said.since() == []
    assert said.answers.session == SECOND
    said.answers.say(Ready(9))
    assert said.since() == [(SECOND, 5, 1, Ready(9))]
