"""The nodes of a session as the primary sees them: what each has answered, how far it is, and how it ended there. Pure."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from common.session import Answer, Differ, Done, Lack, Mode, Phase, Progress, Ready, Result, TableCompared, Want

_EARLY: Final = 100


@dataclass
class Member:
    """One node. `heard`: up to which number its answers are here; `received`: up to which it has ours."""

    name: str
    began: float
    session_number: int = 0
    phase: Phase = Phase.REQUESTED
    heard: int = 0
    received: int = 0
    at: float = 0.0
    ready: Ready | None = None
    differ: Differ | None = None
    wants: dict[int, bytes] = field(default_factory=dict)
    lacks: dict[int, bytes] = field(default_factory=dict)
    rows: int = 0
    again: int | None = None
    done: Done | None = None
    chunks_sent: int = 0
    bytes_sent: int = 0
    seconds: float | None = None
    _early: dict[int, Answer] = field(default_factory=dict)

    def take(self, number: int, answer: Answer) -> None:
        """What it answered; in order, each once."""
        self.at = time.monotonic()
        if isinstance(answer, Progress):
            self._progress(answer)
            return
        if number == self.heard + 1 or (number > self.heard and len(self._early) < _EARLY):
            self._early[number] = answer
        while (one := self._early.pop(self.heard + 1, None)) is not None:
            self.heard += 1
            self._note(one)

    def _progress(self, answer: Progress) -> None:
        if self.done is None:
            self.phase = answer.phase
        self.received = max(self.received, answer.received)
        self.rows = max(self.rows, answer.rows)
        if answer.again is not None:
            self.again = answer.again

    def _note(self, answer: Answer) -> None:
        if isinstance(answer, Ready):
            self.ready = answer
            self.received = max(self.received, 1)
            self.phase = Phase.PAUSING
            if answer.refused is not None:
                self.end(Done(Result.REFUSED, answer.refused))
        elif isinstance(answer, Differ):
            self.differ = answer
        elif isinstance(answer, Want):
            self.wants[answer.table] = answer.mask
        elif isinstance(answer, Lack):
            self.lacks[answer.part] = answer.mask
        elif isinstance(answer, Done):
            self.end(answer)

    def end(self, done: Done) -> None:
        """How it ended there; the first word counts."""
        if self.done is None:
            self.done = done
            self.rows = max(self.rows, done.rows)
            self.phase = Phase.RESUMED if done.result is Result.DONE else Phase.FAILED
            self.seconds = time.monotonic() - self.began

    @property
    def takes_part(self) -> bool:
        """Whether something is still to come from it."""
        return self.done is None

    def document(self, mode: Mode, admin_url: str) -> dict[str, Any]:
        """As INTERFACE has it, with what the node compared or wrote, table by table."""
        done = self.done
        tables = done.tables if done else ()
        rows = {
            "inserted": sum(one.missing for one in tables),
            "updated": sum(one.different for one in tables),
            "deleted": sum(one.extra for one in tables),
        }
        found: dict[str, Any] = {
            "name": self.name,
            "result": str(done.result) if done else None,
            "reason": done.reason if done else None,
            "phase": str(self.phase),
            "rows": rows,
            "files": {"written": 0, "deleted": 0},
            "rows_received": self.rows,
            "chunks_sent": self.chunks_sent,
            "bytes_sent": self.bytes_sent,
            "seconds": round(self.seconds if self.seconds is not None else time.monotonic() - self.began, 3),
            "admin_url": admin_url,
        }
        if mode is not Mode.SYNC:
            found["equal"] = bool(done and done.result is Result.DONE and not tables)
            found["tables"] = [_compared(one) for one in tables]
        else:
            found["tables"] = [
                {"table": one.table, "inserted": one.missing, "updated": one.different, "deleted": one.extra}
                for one in tables
            ]
        return found


def _compared(one: TableCompared) -> dict[str, Any]:
    """As INTERFACE has it, with some keys of each sort."""
    return {
        "table": one.table,
        "rows_missing": one.missing,
        "rows_extra": one.extra,
        "rows_different": one.different,
        "keys": {"missing": list(one.missing_keys), "extra": list(one.extra_keys), "different": list(one.different_keys)},
    }


def active(members: Iterable[Member]) -> list[Member]:
    """Those from which something is still to come."""
    return [member for member in members if member.takes_part]
