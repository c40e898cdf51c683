"""Reading ahead and writing behind: in order, one thing at a time on each side, and no failure unheard."""

import threading
from collections.abc import Iterator

import pytest

from publisher.overlap import ahead, behind


def test_what_is_read_ahead_comes_in_order_from_another_thread() -> None:
    threads = set()

    def numbers() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.current_thread())
            yield number

    with ahead(numbers()) as found:
        assert list(found) == list(range(100))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_the_next_is_fetched_while_the_caller_works() -> None:
    second = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    with ahead(numbers()) as found:
        assert next(found) == 1
        assert second.wait(10)


def test_nothing_is_fetched_any_more_once_it_is_closed() -> None:
    fetched = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            fetched.append(number)
            yield number

    with ahead(numbers()) as found:
        next(found)
    known = list(fetched)
    assert len(known) < 5
    assert not [one for one in threading.enumerate() if one.name == "stsync-relay-ahead"]
    assert fetched == known


def test_a_failure_to_read_reaches_the_caller_in_its_place() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("the database is away")

    with ahead(numbers()) as found:
        assert next(found) == 1
        with pytest.raises(ValueError, match="is away"):
            next(found)


def test_what_is_left_for_later_is_done_in_order_before_the_end() -> None:
    done: list[int] = []
    with behind() as run:
        for number in range(100):
            run(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(100))


def test_it_does_not_fall_far_behind() -> None:
    may_go, given = threading.Event(), []

    def wait() -> None:
        may_go.wait(10)

    def give() -> None:
        with behind() as run:
            for number in range(10):
                run(wait)
                given.append(number)

    giver = threading.Thread(target=give)
    giver.start()
    giver.join(0.3)
    assert giver.is_alive()
    assert len(given) <= 3
    may_go.set()
    giver.join(10)
    assert len(given) == 10


def fail() -> None:
    raise ValueError("the disk is full")


def test_a_failure_to_write_reaches_the_caller_at_the_end() -> None:
    with pytest.raises(ValueError, match="is full"), behind() as run:
        run(fail)


def test_a_failure_to_write_stops_a_caller_who_goes_on() -> None:
    given: list[int] = []

    def give() -> None:
        with behind() as run:
            for number in range(100):
                run(fail)
                given.append(number)

    with pytest.raises(ValueError, match="is full"):
        give()
    assert len(given) < 10


def test_a_callers_own_failure_comes_out_when_all_has_ended() -> None:
    done: list[int] = []

    def give() -> None:
        with behind() as run:
            run(lambda: done.append(1))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        give()
    assert done == [1]
