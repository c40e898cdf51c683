"""Named points at which a service kills itself (SIGKILL), for tests: nothing of it stands in the product.

`NAME:COUNT` in the environment variable CRASH_POINT arms one in a process of tests.warm: the function that the point names, found by
its module and its name there, is wrapped. A name that is gone from the product is an error, never a point that is never reached.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from types import FrameType
from typing import Any

from common.dialects.script import Collected

VARIABLE = "CRASH_POINT"
TICK = "tick"  # a table each of whose rows is told when it comes twice, so that what is committed too early is seen; another follows
DATABASES = ("sqlite", "postgresql", "mariadb")
Judge = Callable[..., bool]


def _always(*_arguments: Any, **_named: Any) -> bool:
    return True


@dataclass(frozen=True)
class Point:
    """Before or after a call of `target` (module:name, or module:Class.name).

    `counts`: which calls count; it is given the call's arguments, and as `found` what came of it after. `linger_s`: how long other
    threads go on meanwhile, so that what they were given too early does get out. `ahead`: whether the position in the database is
    then beyond the one that the service has logged (None: that depends). `on`: the databases that it concerns.
    """

    target: str
    after: bool = False
    counts: Judge = _always
    linger_s: float = 0.0
    ahead: bool | None = None
    on: tuple[str, ...] = DATABASES


def _says(word: str, value: object = None) -> Judge:
    return lambda *_arguments, **named: word in named and (value is None or named[word] == value)


def _found(*_arguments: Any, found: Any, **_named: Any) -> bool:
    return bool(found)


def _batch(*_arguments: Any, token: object = None, **_named: Any) -> bool:
    return token is not None


def _answer(*_arguments: Any, token: object = None, persistent: bool = True, **_named: Any) -> bool:
    return token is None and persistent and threading.current_thread().name == "stsync-control"


def _compound(_link: object, _command: object, sql: object = "", **_named: Any) -> bool:
    return "BEGIN NOT ATOMIC" in str(sql)


def _frame(*functions: str) -> FrameType | None:
    """Where this thread is in one of these functions (by qualified name), for what the call that is judged is not told itself."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_qualname not in functions:
        frame = frame.f_back
    return frame


def _within(function: str) -> Judge:
    return lambda *_arguments, **_named: _frame(function) is not None


def _both(one: Judge, other: Judge) -> Judge:
    return lambda *arguments, **named: one(*arguments, **named) and other(*arguments, **named)


def _drains_tick(*_arguments: Any, **_named: Any) -> bool:
    frame = _frame("Relay._drain_pages")
    page = None if frame is None else frame.f_locals.get("page")
    return page is not None and _of_tick(*_arguments, found=page.rows)


def _of_tick(*_arguments: Any, found: Any, **_named: Any) -> bool:
    return bool(found) and any(row.table_name == TICK for row in found)


def _applies_tick(*_arguments: Any, **_named: Any) -> bool:
    frame = _frame("Transactions._at_once", "Transactions._commit")
    return frame is not None and any(one.table == TICK for unit in frame.f_locals["units"] for one in unit.frames())


def _awaits_batch(window: Any, *_arguments: Any, **_named: Any) -> bool:
    return any(one.token is not None for one in window._sent)


def _at_length(script: object, *_arguments: Any, **_named: Any) -> bool:
    """Of a script that runs each statement by itself, where others are collected."""
    return not isinstance(script, Collected)


def _ran_tick_at_length(_replayer: object, script: object, step: Any, **_named: Any) -> bool:
    return _at_length(script) and bool(step.table == TICK)


def _with_failed(_connection: object, _replayer: object, failed: list[object], **_named: Any) -> bool:
    return bool(failed)


_SERVERS = ("postgresql", "mariadb")
_ENDS = "common.dialects.script:Script.commit"  # of what moves a position, and of sweeps; heartbeats and the like end without one
_OUT = 0.1
RELAY = {
    "outbox read in part": Point("publisher.outbox:pages", after=True, ahead=False),
    "outbox rows taken": Point("publisher.outbox:take", after=True, counts=_of_tick, ahead=False, on=("postgresql",)),
    "outbox read": Point("publisher.composer:Composer.finish", counts=_drains_tick, ahead=False),
    "journal written": Point("publisher.journal:append", after=True, counts=_drains_tick, linger_s=_OUT, ahead=False),
    "outbox rows removed": Point("publisher.outbox:remove", after=True, counts=_drains_tick, linger_s=_OUT, ahead=False),
    "relay moves its position": Point("common.nodestate:advance", counts=_drains_tick, linger_s=_OUT, ahead=False),
    "relay commits": Point("common.nodestate:advance", after=True, counts=_drains_tick, linger_s=_OUT, ahead=False),
    "relay has committed": Point(_ENDS, after=True, counts=_drains_tick, ahead=True),
    "committed, not offered": Point("publisher.relay:Relay.drain", after=True, counts=_found, ahead=True),
}
_LONG = _within("Relay._drain_long")
TAKEN = {  # MariaDB, where what a long drain took is noted, and swept later
    "taken rows noted": Point("publisher.taken:Taking.note", after=True, linger_s=_OUT, ahead=False, on=("mariadb",)),
    "long drain commits": Point("common.nodestate:advance", after=True, counts=_LONG, ahead=False, on=("mariadb",)),
    "long drain has committed": Point(_ENDS, after=True, counts=_LONG, ahead=True, on=("mariadb",)),
}
SWEEP = {
    "swept, not committed": Point(
        "publisher.outbox:remove", after=True, counts=_within("sweep"), linger_s=_OUT, on=("mariadb",)
    ),
    "sweep has committed": Point("publisher.taken:sweep", after=True, on=("mariadb",)),
}
SENDER = {
    "in the middle of a page": Point("common.broker:PublishLink.publish", counts=_batch, linger_s=_OUT),
    "published, not confirmed": Point("common.window:ConfirmWindow.confirm", counts=_awaits_batch),
    "confirmed, not saved": Point("publisher.sender:Sender.confirmed_up_to", after=True),
    "saves what is published": Point("common.nodestate:save", after=True, counts=_says("published")),
}
ANSWER = {"in the middle of an answer": Point("common.broker:PublishLink.publish", counts=_answer, linger_s=_OUT)}
PRUNE = {"pruned, not committed": Point("publisher.journal:prune", after=True, counts=_found)}
APPLIER = {
    "before apply": Point("consumer.replay:Replayer.at_once", counts=_applies_tick, linger_s=_OUT, ahead=False),
    "between statements in a savepoint": Point("consumer.replay:Replayer._run", after=True, ahead=False),
    "applied, position not moved": Point("common.nodestate:advance", counts=_applies_tick, linger_s=_OUT, ahead=False),
    "position moved, not committed": Point(
        "common.nodestate:advance", after=True, counts=_applies_tick, linger_s=_OUT, ahead=False
    ),
    "applier has committed": Point(_ENDS, after=True, counts=_applies_tick, linger_s=_OUT, ahead=True),
    "committed, not acknowledged": Point(
        "consumer.applier:Applier._taken", after=True, counts=_applies_tick, linger_s=_OUT, ahead=False
    ),
}
AT_LENGTH = {  # what is too long to be collected: the server has run it, in a transaction that is open there; SQLite always
    "relay commits at length": Point("common.nodestate:advance", after=True, counts=_at_length, ahead=False, on=_SERVERS),
    "between statements": Point(
        "consumer.replay:Replayer._run_plainly", after=True, counts=_ran_tick_at_length, ahead=False
    ),
    "applier commits at length": Point("common.nodestate:advance", after=True, counts=_at_length, ahead=False, on=_SERVERS),
}
_PIPELINE = "common.dialects.postgresql_cursor:QuickCursors._answers"
_STATEMENT = "pymysql.connections:Connection._execute_command"
_SENDS = _within("QuickScript.commit")
AT_ONCE = {  # what ends a transaction was sent together, with its COMMIT; no answer was read
    "relay sent a pipeline": Point(_PIPELINE, counts=_both(_SENDS, _drains_tick), on=("postgresql",)),
    "applier sent a pipeline": Point(_PIPELINE, counts=_both(_SENDS, _applies_tick), on=("postgresql",)),
    "relay sent a compound": Point(_STATEMENT, after=True, counts=_both(_compound, _drains_tick), on=("mariadb",)),
    "applier sent a compound": Point(_STATEMENT, after=True, counts=_both(_compound, _applies_tick), on=("mariadb",)),
}
QUARANTINE = {
    "quarantined, not committed": Point("consumer.quarantine:add", after=True, counts=_with_failed),
    "retried, not committed": Point("consumer.quarantine:retry", after=True, counts=_found),
}
GIVE_UP = {
    "needs a full sync, not committed": Point("common.nodestate:save", after=True, counts=_says("state", "needs_full_sync")),
}
_NODE, _LEADER = "consumer.node_session:NodeSession", "publisher.leading:Leader"
IN_SESSION = {  # a secondary's side of a full synchronization
    "paused": Point("consumer.synchronizer:Synchronizer.begin", after=True),
    "digests taken": Point(f"{_NODE}.look", after=True),
    "tables compared": Point(f"{_NODE}._compare_tables", after=True),
    "rows compared": Point(f"{_NODE}._compare_rows", after=True),
    "chunk kept": Point(f"{_NODE}._take", after=True),
    "before the installation": Point(f"{_NODE}._install"),
    "rows in place": Point("consumer.install:install", after=True),
    "installed, position not moved": Point(f"{_NODE}._prove_and_move"),
    "installed, not committed": Point(f"{_NODE}._prove_and_move", after=True),
    "installed, not told": Point(f"{_NODE}._install", after=True),
}
LEADING = {  # the primary's
    "session asked for": Point("publisher.synchronization:Synchronization._attempt"),
    "snapshot cut": Point("publisher.relay:Relay.cut", after=True),
    "everybody ready": Point(f"{_LEADER}._until_ready", after=True, linger_s=_OUT),
    "buckets told": Point(f"{_LEADER}._say_buckets", after=True, linger_s=_OUT),
    "chunk sent": Point(f"{_LEADER}._send_chunks", after=True, linger_s=_OUT),
    "everything sent": Point(f"{_LEADER}._send_differences", after=True, linger_s=_OUT),
    "session over, not written down": Point("publisher.synchronization:_Keeper.finish"),
}
POINTS = (
    IN_SESSION
    | LEADING
    | RELAY
    | TAKEN
    | SWEEP
    | SENDER
    | ANSWER
    | PRUNE
    | APPLIER
    | AT_LENGTH
    | AT_ONCE
    | QUARANTINE
    | GIVE_UP
)


def arm(armed: str) -> None:
    """Wrap the point's function in this process. Raises KeyError, ImportError or AttributeError where a name is not to be found."""
    name, _, count = armed.rpartition(":")
    point = POINTS[name]
    owner, attribute = target(point)
    setattr(
        owner, attribute, _wrapped(getattr(owner, attribute), point, partial(_count, name, point.linger_s, [int(count)]))
    )


def target(point: Point) -> tuple[Any, str]:
    """The module or class that holds the point's function, and the name there."""
    module, _, path = point.target.partition(":")
    owner: Any = import_module(module)
    *holders, attribute = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    getattr(owner, attribute)
    return owner, attribute


def words(name: str) -> str:
    """What a process that died at the point has said."""
    return f"killed at the point: {name}\n"


def _count(name: str, linger_s: float, left: list[int]) -> None:
    left[0] -= 1
    if left[0] == 0:
        time.sleep(linger_s)  # the other threads work on
        os.write(2, words(name).encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(function: Callable[..., Any], point: Point, count: Callable[[], None]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not point.after and point.counts(*arguments, **named):
            count()
        found = function(*arguments, **named)
        if isinstance(found, Iterator):
            return _each(found, count) if point.after else found
        if point.after and point.counts(*arguments, **named, found=found):
            count()
        return found

    return call


def _each(found: Iterator[Any], count: Callable[[], None]) -> Iterator[Any]:
    """What is given out piece by piece is under way after the first piece."""
    for one in found:
        count()
        yield one
