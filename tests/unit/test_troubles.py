"""Troubles of a service: told while they last, also between one attempt that fails and the next, and no longer."""

from pathlib import Path

from pydantic import SecretStr

from common.database import Database
from common.linkstate import LinkState
from common.settings import DatabaseSettings
from common.troubles import Troubles, sentences


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(directory: Path) -> tuple[Troubles, Clock]:
    clock = Clock()
    return Troubles(Database(DatabaseSettings(url=SecretStr(f"sqlite:///{directory}/st.db"))), clock), clock


def test_what_fails_at_once_whenever_it_is_tried_is_told_all_the_time(tmp_path: Path) -> None:
    troubles, clock = make(tmp_path)
    for name in ("relay", "reporter"):
        for _ in range(5):
            troubles.failed(name, "denied")
            clock.now += 10
            assert troubles.of(name) == "denied", "it rests"
            troubles.tried(name)
            clock.now += 1
            assert troubles.of(name) == "denied", "it may fail again any moment"


def test_who_says_himself_when_he_gets_on_may_take_long_to_fail_again(tmp_path: Path) -> None:
    troubles, clock = make(tmp_path)
    troubles.failed("applier", "somebody holds a lock")
    troubles.tried("applier")
    clock.now += 30
    assert troubles.of("applier") == "somebody holds a lock"
    troubles.over("applier")
    assert troubles.of("applier") is None


def test_what_does_not_fail_again_is_over(tmp_path: Path) -> None:
    troubles, clock = make(tmp_path)
    troubles.failed("reporter", "denied")
    troubles.tried("reporter")
    clock.now += 2.5
    assert troubles.of("reporter") is None
    troubles.failed("relay", "denied")
    troubles.over("relay")
    assert troubles.of("relay") is None, "it brought something forward"


def test_a_link_is_in_trouble_until_it_is_ready(tmp_path: Path) -> None:
    troubles, clock = make(tmp_path)
    troubles.link("broker_publish", LinkState("down", "refused the connection"))
    clock.now += 3600
    assert troubles.of("applier", "broker_publish") == "refused the connection"
    troubles.link("broker_publish", LinkState("ready"))
    assert troubles.of("applier", "broker_publish") is None


def test_one_reason_of_several_is_told_once_with_its_first_time(tmp_path: Path) -> None:
    troubles, _ = make(tmp_path)
    for name in ("broker_consume", "broker_publish"):
        troubles.link(name, LinkState("down", "no connection"))
    troubles.failed("relay", "x" * 5000)
    assert [len(one) < 2100 for one in sentences(troubles.present())] == [True, True]
