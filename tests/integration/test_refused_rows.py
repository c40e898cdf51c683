"""What is refused costs the others little: one row among many is found by halves, and a full quarantine is tried now and then."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from common.errors import NotApplicable
from consumer import applier, missing, quarantine, replay, retries
from consumer.replay import Replayer
from tests.pipeline import Pipeline

MANY = 3000


def accounts(first: int, last: int) -> str:
    rows = ", ".join(f"({number}, 'a{number}', NULL, NULL, NULL)" for number in range(first, last))
    return f"INSERT INTO account VALUES {rows}"


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("refused", [[7], [0, 1, 1500, MANY - 1]], ids=["one", "four"])
def test_few_refused_rows_among_many_take_few_statements(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, refused: list[int], large: bool
) -> None:
    """TRAPS 27, 29: those alone are quarantined, and the rest is not put through one by one."""
    if large:
        monkeypatch.setattr(replay, "FAST_BYTES", 0)
    pipeline.secondary.execute(
        *(f"INSERT INTO account VALUES ({10_000 + number}, 'a{number}', NULL, NULL, NULL)" for number in refused)
    )
    tried: list[int] = []
    plain = Replayer._try

    def counted(self: Replayer, connection: Connection, step: Any, *, settle: bool) -> str | None:
        tried.append(step.count)
        return plain(self, connection, step, settle=settle)

    monkeypatch.setattr(Replayer, "_try", counted)
    pipeline.primary.execute(accounts(0, MANY), "INSERT INTO login VALUES (5, 'of one that went', NULL)")
    pipeline.move()
    waiting = pipeline.secondary.rows("SELECT key_json FROM stsync_quarantine ORDER BY id")
    assert [key.strip('"') for (key,) in waiting] == [str(number) for number in refused]
    assert pipeline.secondary.rows("SELECT count(*) FROM account WHERE id < 10000") == [(MANY - len(refused),)]
    assert pipeline.secondary.rows("SELECT account_id FROM login") == [(5,)]
    assert len(tried) < 40 * len(refused)
    pipeline.secondary.execute("DELETE FROM account WHERE id >= 10000")
    later = Clock(time.monotonic() + 60)
    monkeypatch.setattr(retries, "time", later)
    for _ in range(2 * len(refused)):  # on a slow machine they are tried one by one
        pipeline.move()
        later.now += 60
    assert pipeline.wrong() == []


def test_a_large_change_set_goes_without_savepoints(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a savepoint keeps of a large transaction, to undo it, may double its cost."""
    pipeline.primary.execute(accounts(0, MANY), "UPDATE account SET note = 'n'", "DELETE FROM account WHERE id > 5")
    with monkeypatch.context() as patch:
        patch.setattr(replay, "FAST_BYTES", 0)
        patch.setattr(Connection, "begin_nested", lambda *_: pytest.fail("a savepoint"))
        pipeline.move()
    assert pipeline.wrong() == []


def test_a_later_change_of_a_refused_row_follows_it(pipeline: Pipeline) -> None:
    """TRAPS 29: in a unit whose rows are put through in pieces, too."""
    pipeline.secondary.execute("INSERT INTO account VALUES (10000, 'a7', NULL, NULL, NULL)")
    pipeline.primary.execute(
        accounts(0, 50), "UPDATE account SET note = 'x'", "UPDATE account SET name = 'free' WHERE id = 7"
    )
    pipeline.move()
    pipeline.secondary.execute("DELETE FROM account WHERE id = 10000")
    assert pipeline.wrong() == []


@dataclass
class Clock:
    """Stands for the module `time`; to try a change takes as long as is said."""

    now: float = field(default_factory=time.monotonic)
    tried: list[tuple[float, list[int]]] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def trying(self, takes_s: float) -> Callable[..., int]:
        def retry(_connection: Connection, _replayer: Replayer, ids: list[int]) -> int:
            self.tried.append((self.now, ids))
            self.now += takes_s * len(ids)
            return 0

        return retry


@pytest.mark.parametrize("takes_s", [0.001, 10.0], ids=["quick", "slow"])
def test_the_quarantine_takes_a_small_share_of_the_time(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, takes_s: float
) -> None:
    """TRAPS 29: however much stands in it, the changes that arrive go first."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    clock = Clock()
    for module in (applier, missing, retries):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(quarantine, "retry", clock.trying(takes_s))
    for number in range(1000):
        clock.now += 0.25
        if number % 10 == 0:
            pipeline.primary.execute(f"INSERT INTO unit VALUES ({100 + number}, 'u{number}', NULL)")
        pipeline.move()
    assert len(clock.tried) > 1
    apart = [later - earlier for (earlier, _), (later, _) in pairwise(clock.tried)]
    assert min(apart) >= 10 * takes_s


def test_a_full_quarantine_is_gone_through_in_short_slices(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 29: replay never waits long for it, and each change gets its turn."""
    clock = Clock()
    for module in (applier, missing, retries):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(quarantine, "retry", clock.trying(1 / 64))
    pipeline.secondary.execute(*(f"INSERT INTO unit VALUES ({900 + n}, 'taken{n}', NULL)" for n in range(120)))
    values = ", ".join(f"({n + 1}, 'taken{n}', NULL)" for n in range(120))
    pipeline.primary.execute(f"INSERT INTO unit VALUES {values}")
    pipeline.move()
    for _ in range(200):
        clock.now += 0.1
        pipeline.move()
    assert [len(ids) for _, ids in clock.tried[:4]] == [10, 3, 3, 3]
    ids = [one for _, some in clock.tried for one in some]
    assert ids[:120] == sorted(set(ids))
    assert ids[120:122] == ids[:2]


def resting(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A change waits, and is not tried again by itself for a while."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    clock = Clock(time.monotonic() + 10)
    for module in (applier, missing, retries):
        monkeypatch.setattr(module, "time", clock)
    with monkeypatch.context() as slow:
        slow.setattr(quarantine, "retry", clock.trying(10.0))
        clock.now += 10.0
        pipeline.move()
    assert len(clock.tried) == 1
    return clock


def test_what_the_operator_asks_for_is_tried_at_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """INTERFACE, quarantine retry: even while it rests."""
    resting(pipeline, monkeypatch).now += 1.0
    pipeline.secondary.execute("DELETE FROM unit WHERE id = 900", "UPDATE stsync_quarantine SET requested = 1")
    pipeline.move()
    assert pipeline.wrong() == []


def test_who_asks_while_it_is_tried_is_answered_by_another_try(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """INTERFACE, quarantine retry: what was mended after the try before had looked is seen by one of its own."""
    clock = resting(pipeline, monkeypatch)
    with pipeline.applier_database.connect() as operator, monkeypatch.context() as meanwhile:

        def ask() -> None:
            quarantine.request_retry(operator, [1])
            operator.commit()

        def answered(connection: Connection, asked: Any) -> None:
            pipeline.secondary.execute("DELETE FROM unit WHERE id = 900")
            ask()
            plain(connection, asked)

        plain = quarantine.answered
        meanwhile.setattr(quarantine, "answered", answered)
        clock.now += 1.0
        ask()
        pipeline.move()
    assert pipeline.secondary.rows("SELECT requested FROM stsync_quarantine") == [(1,)]
    pipeline.move()
    assert pipeline.wrong() == []


def test_what_was_discarded_is_not_counted_any_more(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """INTERFACE, status: though nothing else happens on the node."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    assert pipeline.applier.standing().quarantined == 1
    pipeline.secondary.execute("DELETE FROM stsync_quarantine")
    monkeypatch.setattr(retries, "time", Clock(time.monotonic() + 60))
    pipeline.move()
    assert pipeline.applier.standing().quarantined == 0


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_what_the_commit_refuses_is_not_tried_again_and_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 29: though the operator asked for it; the newest reason is kept."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    tried: list[object] = []

    def refusing(*arguments: object) -> int:
        tried.append(arguments)
        raise NotApplicable("the commit was refused")

    clock = Clock(time.monotonic() + 60)
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(quarantine, "retry", refusing)
    pipeline.secondary.execute("UPDATE stsync_quarantine SET requested = 1")
    for _ in range(5):
        pipeline.move()
    assert len(tried) <= 2, "once because it was asked for, once because it was due"
    assert pipeline.secondary.rows("SELECT reason, requested FROM stsync_quarantine") == [("the commit was refused", 0)]
