"""Named points at which a service kills itself (SIGKILL), for tests: nothing of it stands in the product.

`NAME:COUNT` in the environment variable CRASH_POINT arms one in a process of tests.warm: the function that the point names, found by
its module and its name there, is wrapped. A name that is gone from the product is an error, never a point that is never reached.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Any

VARIABLE = "CRASH_POINT"
Judge = Callable[..., bool]


def _always(*_arguments: Any, **_named: Any) -> bool:
    return True


@dataclass(frozen=True)
class Point:
    """Before or after a call of `target` (module:name, or module:Class.name).

    `counts`: which calls count; it is given the call's arguments, and as `found` what came of it after. `linger_s`: how long other
    threads go on meanwhile, so that what they were given too early does get out.
    """

    target: str
    after: bool = False
    counts: Judge = _always
    linger_s: float = 0.0


def _says(word: str, value: object = None) -> Judge:
    return lambda *_arguments, **named: word in named and (value is None or named[word] == value)


def _found(*_arguments: Any, found: Any, **_named: Any) -> bool:
    return bool(found)


def _in_thread(name: str) -> Judge:
    return lambda *_arguments, **_named: threading.current_thread().name == name


def _batch(*_arguments: Any, token: object = None, **_named: Any) -> bool:
    return token is not None


def _answer(*_arguments: Any, token: object = None, persistent: bool = True, **_named: Any) -> bool:
    return token is None and persistent and threading.current_thread().name == "stsync-control"


def _compound(thread: str) -> Judge:
    here = _in_thread(thread)
    return lambda _link, _command, sql="", **_named: "BEGIN NOT ATOMIC" in str(sql) and here()


def _with_failed(_connection: object, _replayer: object, failed: list[object], **_named: Any) -> bool:
    return bool(failed)


_COMMIT = "sqlalchemy.engine:Connection.commit"
_OUT = 0.1
RELAY = {
    "outbox read in part": Point("publisher.outbox:pages", after=True),
    "outbox read": Point("publisher.composer:Composer.finish"),
    "journal written": Point("publisher.journal:append", after=True, linger_s=_OUT),
    "outbox rows removed": Point("publisher.outbox:remove", after=True, linger_s=_OUT),
    "relay moves its position": Point("common.nodestate:advance", linger_s=_OUT),
    "relay commits": Point(_COMMIT, counts=_in_thread("stsync-relay"), linger_s=_OUT),
    "relay has committed": Point(_COMMIT, after=True, counts=_in_thread("stsync-relay")),
    "committed, not offered": Point("publisher.relay:Relay.drain", after=True, counts=_found),
}
_ENDS = "common.dialects.script:Script.commit"
TAKEN = {  # MariaDB, where what a long drain took is noted, and swept later: the first such end is that of the drain
    "taken rows noted": Point("publisher.taken:Taking.note", after=True, linger_s=_OUT),
    "drain or sweep commits": Point(_ENDS, counts=_in_thread("stsync-relay"), linger_s=_OUT),
    "drain or sweep has committed": Point(_ENDS, after=True, counts=_in_thread("stsync-relay")),
}
SENDER = {
    "in the middle of a page": Point("common.broker:PublishLink.publish", counts=_batch, linger_s=_OUT),
    "published, not confirmed": Point("common.window:ConfirmWindow.confirm"),
    "confirmed, not saved": Point("publisher.sender:Sender.confirmed_up_to", after=True),
    "saves what is published": Point("common.nodestate:save", after=True, counts=_says("published")),
}
ANSWER = {"in the middle of an answer": Point("common.broker:PublishLink.publish", counts=_answer, linger_s=_OUT)}
PRUNE = {"pruned, not committed": Point("publisher.journal:prune", after=True, counts=_found)}
APPLIER = {
    "before apply": Point("consumer.replay:Replayer.at_once", linger_s=_OUT),
    "between statements": Point("consumer.replay:Replayer._run_plainly", after=True),
    "applied, position not moved": Point("common.nodestate:advance", linger_s=_OUT),
    "position moved, not committed": Point("common.nodestate:advance", after=True, linger_s=_OUT),
    "applier commits": Point(_COMMIT, counts=_in_thread("stsync-applier"), linger_s=_OUT),
    "applier has committed": Point(_COMMIT, after=True, counts=_in_thread("stsync-applier")),
    "committed, not acknowledged": Point("common.broker:ConsumeLink.done"),
}
_PIPELINE = "common.dialects.postgresql_cursor:QuickCursors._answers"
_STATEMENT = "pymysql.connections:Connection._execute_command"
AT_ONCE = {  # what ends a transaction was sent together, with its COMMIT; no answer was read
    "relay sent a pipeline": Point(_PIPELINE, counts=_in_thread("stsync-relay")),
    "applier sent a pipeline": Point(_PIPELINE, counts=_in_thread("stsync-applier")),
    "relay sent a compound": Point(_STATEMENT, after=True, counts=_compound("stsync-relay")),
    "applier sent a compound": Point(_STATEMENT, after=True, counts=_compound("stsync-applier")),
}
QUARANTINE = {
    "quarantined, not committed": Point("consumer.quarantine:add", after=True, counts=_with_failed),
    "retried, not committed": Point("consumer.quarantine:retry", after=True, counts=_found),
}
GIVE_UP = {
    "needs a full sync, not committed": Point("common.nodestate:save", after=True, counts=_says("state", "needs_full_sync")),
}
POINTS = RELAY | TAKEN | SENDER | ANSWER | PRUNE | APPLIER | AT_ONCE | QUARANTINE | GIVE_UP


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
