"""What is refused costs the others little: one row among many is found by halves, and a full quarantine is tried now and then."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from consumer import applier, quarantine
from consumer.replay import Replayer
from tests.pipeline import Pipeline

MANY = 3000


def accounts(first: int, last: int) -> str:
    rows = ", ".join(f"({number}, 'a{number}', NULL, NULL, NULL)" for number in range(first, last))
    return f"INSERT INTO account VALUES {rows}"


@pytest.mark.parametrize("refused", [[7], [0, 1, 1500, MANY - 1]], ids=["one", "four"])
def test_few_refused_rows_among_many_take_few_statements(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, refused: list[int]
) -> None:
    """TRAPS 27, 29: those alone are quarantined, and the rest is not put through one by one."""
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
    pipeline.applier._retried = pipeline.applier._looked = pipeline.applier._rested = 0.0
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
    """Stands for the module `time`; a retry takes as long as is said."""

    now: float = field(default_factory=time.monotonic)
    retries: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def retrying(self, takes_s: float) -> Callable[..., int]:
        def retry(*_arguments: object) -> int:
            self.retries.append(self.now)
            self.now += takes_s
            return 0

        return retry


@pytest.mark.parametrize(("takes_s", "apart_s"), [(0.001, 0.5), (10.0, 210.0)], ids=["quick", "slow"])
def test_the_quarantine_takes_a_small_share_of_the_time(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, takes_s: float, apart_s: float
) -> None:
    """TRAPS 29: however much stands in it, the changes that arrive go first."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    clock = Clock()
    monkeypatch.setattr(applier, "time", clock)
    monkeypatch.setattr(quarantine, "retry", clock.retrying(takes_s))
    for number in range(1000):
        clock.now += 0.25
        if number % 10 == 0:
            pipeline.primary.execute(f"INSERT INTO unit VALUES ({100 + number}, 'u{number}', NULL)")
        pipeline.move()
    assert len(clock.retries) > 1
    apart = [later - earlier for earlier, later in zip(clock.retries, clock.retries[1:], strict=False)]
    assert min(apart) >= apart_s


def test_what_the_operator_asks_for_is_tried_at_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """INTERFACE, quarantine retry: even while it rests."""
    pipeline.secondary.execute("INSERT INTO unit VALUES (900, 'taken', NULL)")
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'taken', NULL)")
    pipeline.move()
    clock = Clock()
    monkeypatch.setattr(applier, "time", clock)
    with monkeypatch.context() as slow:
        slow.setattr(quarantine, "retry", clock.retrying(10.0))
        clock.now += 10.0
        pipeline.move()
    assert len(clock.retries) == 1
    clock.now += 1.0
    pipeline.secondary.execute("DELETE FROM unit WHERE id = 900", "UPDATE stsync_quarantine SET requested = 1")
    pipeline.move()
    assert pipeline.wrong() == []
