"""SQLite: a program that writes one short transaction after the other and the relay share one write lock (DESIGN §10)."""

import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from tests.harness import transaction
from tests.pipeline import Pipeline

WRITES = 4000
PROGRAM = """
import sqlite3, sys
link = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(int(sys.argv[2])):
    link.execute("INSERT INTO unit VALUES (?, ?, NULL)", (number, f'busy {number}'))
    sum(range(4000))
"""


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_relay_starts_while_a_program_holds_the_lock(pipeline: Pipeline) -> None:
    """With nothing to drain it does not ask for it."""
    pipeline.restart_relay()
    with transaction(pipeline.primary) as held:
        held.execute(text("INSERT INTO unit VALUES (1, 'held', NULL)"))
        begun = time.monotonic()
        assert pipeline.relay.drain() is None
        assert time.monotonic() - begun < 5
        held.commit()
    pipeline.move()
    assert pipeline.wrong() == []


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_relay_gets_the_lock_while_a_program_writes_without_pause(pipeline: Pipeline) -> None:
    """It is free for moments only, and none of them is worth a rest: what is written goes out in many small drains."""
    drained: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pipeline.primary.engine.url.database), str(WRITES)]
    ) as program:
        running = True
        while running:
            running = program.poll() is None
            while (found := pipeline.relay.drain()) is not None:
                drained.append(found.rows)
    assert program.returncode == 0
    assert sum(drained) == WRITES
    assert len(drained) > 50  # fewer than twenty with the busy handler alone
