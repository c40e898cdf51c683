"""A service's threads: when one dies the process ends with its reason, and every wait ends with stop (STYLE 6)."""

import os
import signal
import threading
import time

import pytest

from common.crew import Crew
from common.database import Database
from common.errors import Fault, Refused, Unavailable
from common.settings import DatabaseSettings
from common.stop import Stop
from common.troubles import Troubles


def new_crew() -> Crew:
    """Whose troubles nobody keeps."""
    return Crew(Stop(), Troubles(Database(DatabaseSettings(url="sqlite:///kept-nowhere.db"))))  # type: ignore[arg-type]


def idle(stop: Stop) -> None:
    stop.wait(60)


def test_a_thread_that_is_refused_ends_the_process_with_its_reason() -> None:
    crew = new_crew()

    def refused() -> None:
        raise Refused("another one has it")

    crew.start("idle", lambda: idle(crew.stop))
    crew.start("lock", refused)
    crew.wait()
    with pytest.raises(Refused, match="another one has it"):
        crew.join(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_of_a_bug_is_a_fault_that_names_it() -> None:
    crew = new_crew()

    def bug() -> None:
        raise ValueError("seven")

    crew.start("applier", bug)
    crew.wait()
    with pytest.raises(Fault, match="ValueError: seven"):
        crew.join(30)


def test_work_that_cannot_be_done_now_is_begun_again() -> None:
    crew = new_crew()
    tries: list[float] = []

    def away() -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Unavailable("the database")
        crew.stop.set()

    crew.start("relay", away)
    crew.wait()
    crew.join(30)
    assert len(tries) == 3
    assert tries[2] - tries[0] > 0.2, "with a pause that grows"


def test_a_thread_that_does_not_end_is_named() -> None:
    crew = new_crew()
    began, release = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        release.wait(60)

    crew.start("control", hang)
    assert began.wait(10)
    crew.stop.set()
    try:
        with pytest.raises(Fault, match="stsync-control did not stop within 0 s"):
            crew.join(0.1)
    finally:
        release.set()


def test_what_fails_each_second_is_told_or_ends_the_process() -> None:
    crew = new_crew()
    looks = iter([Unavailable("the database"), Refused("no longer")])

    def look() -> None:
        raise next(looks)

    crew.start_each_second("lists", look)
    crew.wait()
    with pytest.raises(Refused, match="no longer"):
        crew.join(30)


def test_a_signal_sets_stop_whatever_the_main_thread_holds() -> None:
    """A handler runs between two instructions of the main thread: it may not take a lock."""
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stop.on_signals()
        assert not stop.is_set()
        stop.working()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        assert stop.wait(60)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_a_signal_ends_a_process_that_is_still_starting() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stop.on_signals()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 0
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_stop_may_be_set_any_number_of_times() -> None:
    stop = Stop()
    for _ in range(100_000):  # more than a pipe holds
        stop.set()
    assert stop.is_set()
    assert os.read(stop.fileno(), 1) == b"x"
