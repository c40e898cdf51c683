"""What counts of a node's answers in a session: each once, in their order, and its first word about the end."""

from common.session import Answer, Differ, Done, Mode, Phase, Progress, Ready, Result, Want
from publisher.members import Member, active

WELL = Done(Result.DONE, None, rows=5)


def member(*answers: tuple[int, Answer]) -> Member:
    made = Member("st2", 0.0)
    for number, answer in answers:
        made.take(number, answer)
    return made


def test_answers_count_once_and_in_order_whatever_comes_first() -> None:
    one = member((3, Want(0, b"\3")), (2, Differ((0,), ())))
    assert (one.heard, one.ready, one.differ, one.wants) == (0, None, None, {})
    one.take(1, Ready(7))
    assert (one.heard, one.ready, one.differ, one.wants) == (3, Ready(7), Differ((0,), ()), {0: b"\3"})
    one.take(2, Differ((), ()))
    one.take(3, Want(0, b"\0"))
    assert (one.heard, one.differ, one.wants) == (3, Differ((0,), ()), {0: b"\3"})


def test_what_comes_far_too_early_is_not_kept_without_bound() -> None:
    one = member(*((number, Ready(7)) for number in range(2, 1000)))
    one.take(1, Ready(7))
    assert one.heard < 200


def test_who_refuses_is_not_waited_for() -> None:
    refused, ready = member((1, Ready(7, "another schema"))), member((1, Ready(7)))
    assert active([refused, ready]) == [ready]
    assert refused.done == Done(Result.REFUSED, "another schema")
    assert refused.phase is Phase.FAILED


def test_how_it_ended_is_what_was_said_first() -> None:
    one = member((1, Ready(7)), (2, WELL))
    one.end(Done(Result.FAILED, "it was cancelled"))
    one.take(0, Progress(Phase.CHUNKS, 9, 1))
    assert (one.done, one.phase, one.takes_part) == (WELL, Phase.RESUMED, False)
    away = member((1, Ready(7)))
    away.end(Done(Result.UNREACHABLE, "nothing was heard"))
    away.take(2, WELL)
    assert away.document(Mode.SYNC, "")["result"] == "unreachable"


def test_only_who_was_compared_and_does_not_differ_is_called_equal() -> None:
    assert member((1, Ready(7)), (2, WELL)).document(Mode.VERIFY, "")["equal"] is True
    for answers in (((1, Ready(7)),), ((1, Ready(7, "busy")),), ((1, Ready(7)), (2, Done(Result.FAILED, "why")))):
        assert member(*answers).document(Mode.VERIFY, "")["equal"] is False


def test_how_far_it_is_only_rises_and_what_it_lacks_is_remembered() -> None:
    one = member((0, Progress(Phase.CHUNKS, 9, 100, again=10)), (0, Progress(Phase.CHUNKS, 8, 90)))
    assert (one.received, one.rows, one.again) == (9, 100, 10)
