"""Which sessions the primary begins by itself, and which never (TRAPS 12, DOMAIN §7)."""

from dataclasses import replace
from typing import Any

from common import session_history, sessions
from common.nodestate import State
from common.session import Mode, Phase
from common.sessions import Request
from common.settings import SessionSettings
from publisher.healing import Known, Wanted, ahead, wanted

NOW = 10_000_000
SETTINGS = SessionSettings(rejoin_pause_s=10.0, verify_every_s=600.0, verify_at_once=False)
AT_ONCE = SessionSettings(rejoin_pause_s=10.0, verify_every_s=600.0)
LOOK = Wanted(Mode.VERIFY, (), sessions.DOUBT)


def past(
    mode: Mode, result: str, *, ago_s: float, nodes: tuple[str, ...] | None = None, cause: str = "operator", tables: Any = ()
) -> Request:
    at = NOW - int(ago_s * 1000)
    node = {"name": "st2", "result": result, "reason": "because", "tables": list(tables)}
    return Request(
        1, "ab" * 16, mode, False, cause, nodes, 60.0, Phase.RESUMED, None, at, at, at, False, (1, 1), {"nodes": [node]}
    )


def ask(
    known: Known,
    *history: Request,
    head: int = 10,
    settings: SessionSettings = SETTINGS,
    began_s: float = 5,
    outdated: bool = False,
    doubted_s: float | None = None,
) -> Wanted | None:
    return wanted(
        {"st2": known},
        history,
        head=head,
        offline_after_s=10.0,
        settings=settings,
        outdated=outdated,
        doubted_ms=None if doubted_s is None else NOW - int(doubted_s * 1000),
        began_ms=NOW - int(began_s * 1000),
        now_ms=NOW,
    )


WELL = Known(State.IN_SYNC, 10, True, 1.0)
NEEDS = Known(State.NEEDS_FULL_SYNC, 5, True, 1.0)
NEW = Known(State.IN_SYNC, 0, False, 1.0)


def test_who_is_well_is_left_alone() -> None:
    assert ask(WELL) is None
    assert ask(WELL, past(Mode.SYNC, "done", ago_s=100)) is None


def test_who_needs_a_full_synchronization_gets_one_of_its_own() -> None:
    assert ask(NEEDS) == Wanted(Mode.SYNC, ("st2",), sessions.REJOIN)
    assert ask(Known(State.NEEDS_FULL_SYNC, 5, True, 60.0)) is None  # it is not heard
    assert ask(NEEDS, settings=SETTINGS.model_copy(update={"rejoin": False})) is None


def test_who_does_not_know_of_a_session_any_more_gets_one() -> None:
    assert ask(replace(WELL, went_back=True)) == Wanted(Mode.SYNC, ("st2",), sessions.REJOIN)
    assert ask(replace(NEW, went_back=True)) == Wanted(Mode.SYNC, ("st2",), sessions.FIRST)
    assert ask(replace(WELL, state=State.SYNCHRONIZING, went_back=True)) is None


def test_a_primary_that_is_behind_takes_nothing_from_anybody() -> None:
    assert ask(Known(State.NEEDS_FULL_SYNC, 11, True, 1.0)) is None
    assert ask(Known(State.IN_SYNC, 11, False, 1.0)) is None
    assert ask(NEEDS, outdated=True) is None
    assert ask(NEW, outdated=True) is None


def test_what_a_node_said_before_it_was_made_equal_is_not_ahead() -> None:
    def found(one: Known, *history: Request) -> list[str]:
        return ahead({"st2": one}, history, head=10, now_ms=NOW)

    more = Known(State.NEEDS_FULL_SYNC, 11, True, 5.0)
    assert found(Known(State.IN_SYNC, 10, True, 5.0)) == []
    assert found(more) == ["st2"]
    assert found(more, past(Mode.SYNC, "done", ago_s=1)) == []
    assert found(more, past(Mode.SYNC, "done", ago_s=6)) == ["st2"]
    assert found(more, past(Mode.SYNC, "failed", ago_s=1)) == ["st2"]
    assert found(more, past(Mode.VERIFY, "done", ago_s=1)) == ["st2"]
    assert found(replace(more, state=State.PAUSED), past(Mode.SYNC, "failed", ago_s=1)) == []
    assert found(replace(more, state=State.SYNCHRONIZING)) == []


def test_first_contact_is_careful_until_a_person_has_said_that_the_primary_is_right() -> None:
    assert ask(NEW) == Wanted(Mode.SYNC, ("st2",), sessions.FIRST)
    careful = past(Mode.SYNC, "failed", ago_s=100, nodes=("st2",), cause=sessions.FIRST)
    assert ask(NEW, careful) == Wanted(Mode.SYNC, ("st2",), sessions.FIRST)
    assert ask(Known(State.NEEDS_FULL_SYNC, 0, False, 1.0), careful) == Wanted(Mode.SYNC, ("st2",), sessions.FIRST)
    ordered = past(Mode.SYNC, "unreachable", ago_s=100)
    assert ask(NEW, ordered, careful) == Wanted(Mode.SYNC, ("st2",), sessions.REJOIN)


def test_who_missed_one_gets_it_once_it_is_heard() -> None:
    missed = past(Mode.SYNC, "unreachable", ago_s=100)
    assert ask(WELL, missed) == Wanted(Mode.SYNC, ("st2",), sessions.REJOIN)
    assert ask(WELL, past(Mode.SYNC, "done", ago_s=50, nodes=("st2",), cause=sessions.REJOIN), missed) is None
    assert ask(WELL, replace(missed, cancelled=True)) is None  # somebody called it off


def test_pauses_double_and_the_third_is_an_alarm() -> None:
    tried = [past(Mode.SYNC, "failed", ago_s=12 + i, nodes=("st2",), cause=sessions.REJOIN) for i in range(3)]
    assert ask(NEEDS, *tried[:1]) is not None  # 10 s
    assert ask(NEEDS, *tried[:2]) is None  # 20 s
    assert session_history.alarm("st2", tried[:2], NOW, needs=True) is None
    told = session_history.alarm("st2", tried, NOW, needs=True)
    assert told is not None
    assert "because" in told
    long_ago = [past(Mode.SYNC, "failed", ago_s=7000, nodes=("st2",), cause=sessions.REJOIN)] * 5
    assert ask(NEEDS, *long_ago) is not None
    assert session_history.alarm("st2", long_ago, NOW, needs=True) is None


def test_a_verification_comes_when_it_is_time_and_drift_is_repaired_where_that_is_wanted() -> None:
    assert ask(WELL, began_s=700) == Wanted(Mode.VERIFY, (), sessions.CLOCK)
    assert ask(WELL, past(Mode.VERIFY, "done", ago_s=100), began_s=7000) is None
    assert ask(WELL, past(Mode.REHEARSE, "done", ago_s=100), began_s=7000) is not None
    tables = [{"table": "account", "rows_missing": 1, "rows_extra": 0, "rows_different": 2}]
    drifted = past(Mode.VERIFY, "done", ago_s=100, tables=tables)
    assert session_history.drift("st2", [drifted]) == tables
    assert "3 rows of account" in session_history.drifted(tables)
    assert ask(WELL, drifted) is None
    repairing = SETTINGS.model_copy(update={"repair_drift": True})
    assert ask(WELL, drifted, settings=repairing) == Wanted(Mode.SYNC, ("st2",), sessions.DRIFT)
    assert session_history.drift("st2", [past(Mode.SYNC, "done", ago_s=50), drifted]) == []


def test_who_was_not_looked_at_since_the_primary_started_is_compared() -> None:
    assert ask(WELL, settings=AT_ONCE) == LOOK
    assert ask(WELL) is None
    assert ask(NEW, settings=AT_ONCE) == Wanted(Mode.SYNC, ("st2",), sessions.FIRST)
    for mode in (Mode.SYNC, Mode.VERIFY):
        assert ask(WELL, past(mode, "done", ago_s=3), settings=AT_ONCE) is None
        assert ask(WELL, past(mode, "done", ago_s=6), settings=AT_ONCE) == LOOK
    assert ask(WELL, past(Mode.REHEARSE, "done", ago_s=3), settings=AT_ONCE) == LOOK
    assert ask(replace(WELL, silent_s=11.0), settings=AT_ONCE, began_s=60) is None
    assert ask(WELL, settings=AT_ONCE, outdated=True) is None


def test_it_is_waited_for_those_that_start_too_but_not_for_long() -> None:
    def of_two(began_s: int) -> Wanted | None:
        return wanted(
            {"st2": WELL, "st3": replace(WELL, silent_s=100.0)},
            [],
            head=10,
            offline_after_s=10.0,
            settings=AT_ONCE,
            outdated=False,
            began_ms=NOW - began_s * 1000,
            now_ms=NOW,
        )

    assert of_two(5) is None
    assert of_two(11) == LOOK


def test_who_is_in_doubt_is_compared_at_once_and_again_after_longer_and_longer() -> None:
    looked = past(Mode.VERIFY, "done", ago_s=3)
    doubted = replace(WELL, proven=False)
    assert ask(doubted, looked, settings=AT_ONCE) == LOOK
    assert ask(WELL, looked, settings=AT_ONCE, doubted_s=2) == LOOK
    assert ask(WELL, looked, settings=AT_ONCE, doubted_s=4) is None
    assert ask(doubted, looked) is None
    assert ask(replace(doubted, quarantined=1), looked, settings=AT_ONCE) is None  # that it differs is known, and told
    failed = [past(Mode.VERIFY, "failed", ago_s=ago, cause=sessions.DOUBT) for ago in (39, 60, 80)]
    assert ask(doubted, *failed[:1], settings=AT_ONCE) == LOOK
    assert ask(doubted, *failed, settings=AT_ONCE) is None  # 40 s after the third
    assert ask(doubted, past(Mode.VERIFY, "failed", ago_s=41, cause=sessions.DOUBT), *failed[1:], settings=AT_ONCE) == LOOK
    tables = [{"table": "account", "rows_missing": 1, "rows_extra": 0, "rows_different": 0}]
    differs = past(Mode.VERIFY, "done", ago_s=3, tables=tables)
    assert ask(doubted, differs, settings=AT_ONCE) is None  # that is known
