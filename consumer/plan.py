"""The fast path's plan: a unit of changes as few statements, pure (DESIGN §7, TRAPS 27).

Each table's changes are collapsed to the final state of each row where several touch it. Inserts and updates come first, parents
before children; deletes come last, children before parents. In this order a statement either does what the original order
would have done or is refused by a constraint: at no point does a cascade meet a row that belongs to the final state. What
cannot be collapsed that way (a key that changed, a truncation, a row deleted and inserted anew, which may have cascaded) has
no plan and is replayed in the original order.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from common.changes import SEPARATOR, Frame, Key, Kind, keys_of
from common.errors import MessageRefused
from common.schema import ListedTable

_BULK = (Kind.INSERT, Kind.UPDATE, Kind.DELETE)


@dataclass(frozen=True)
class Step:
    """One statement: rows of one table and kind, each key at most once; `key` and `unchecked` as in Frame."""

    table: str
    kind: Kind
    columns: tuple[str, ...]
    count: int
    rows: str
    key: int = 0
    unchecked: bool = False


@dataclass
class _Pile:
    """The changes of one table: as they came while nothing meets twice, by key as soon as that must be known."""

    table: ListedTable
    frames: list[Frame] = field(default_factory=list)

    def needs_keys(self) -> bool:
        """Whether rows may meet: updates may repeat a key, kinds may follow each other on one row."""
        return len({frame.kind for frame in self.frames}) > 1 or self.frames[0].kind is Kind.UPDATE

    def steps(self, max_bytes: int) -> list[Step] | None:
        if len({frame.columns for frame in self.frames if frame.kind is not Kind.DELETE}) > 1:
            return None
        if not self.needs_keys():
            return list(_packed(((f.kind, f.columns, f.count, f.rows) for f in self.frames), self.table.name, max_bytes))
        final = self._final()
        if final is None or self._may_meet(final):
            return None
        columns = {frame.kind: frame.columns for frame in self.frames}
        columns.setdefault(Kind.INSERT, columns.get(Kind.UPDATE, ()))
        steps: list[Step] = []
        for kind in _BULK:
            rows = ((kind, columns[kind], 1, row) for known, row in final.values() if known is kind)
            steps += _packed(rows, self.table.name, max_bytes)
        return steps

    def _final(self) -> dict[Key, tuple[Kind, str]] | None:
        """The last state of each key; None when only the original order is right, or where a row does not begin with its key."""
        final: dict[Key, tuple[Kind, str]] = {}
        for frame in self.frames:
            keys = _keys(frame, self.table)
            if keys is None:
                return None
            for key, row in zip(keys, frame.texts(), strict=True):
                before = final.get(key)
                kind: Kind | None = frame.kind
                if before is not None:
                    kind = _after(before[0], frame.kind)
                    if kind is None:
                        return None
                final[key] = (kind or frame.kind, row)
        return final

    def _may_meet(self, final: Mapping[Key, tuple[Kind, str]]) -> bool:
        """Whether a row that is deleted may have the key of one that is set, in another spelling: its delete would come last."""
        kinds = {kind for kind, _ in final.values()}
        if Kind.DELETE not in kinds or len(kinds) == 1 or all(column.equality == "exact" for column in self.table.key):
            return False
        if any(column.equality == "unknown" for column in self.table.key):
            return True
        folded = {
            kind: {_folded(key) for key, (one, _) in final.items() if (one is Kind.DELETE) is kind} for kind in (True, False)
        }
        return None in folded[True] | folded[False] or not folded[True].isdisjoint(folded[False])


_PLAIN: Final = re.compile(r"[ -\[\]-~]*")  # printable ASCII, no backslash


def _folded(key: Key) -> str | None:
    """What keys that are equal in a collation without case or with padding have in common; None where that is not known."""
    texts = (key,) if isinstance(key, str) else key
    if not all(map(_PLAIN.fullmatch, texts)):
        return None
    return ",".join(text.lower().rstrip('"').rstrip() for text in texts)


def _after(before: Kind, now: Kind) -> Kind | None:
    """Two changes of one row as one; None when they may not be merged."""
    if now is Kind.DELETE:
        return Kind.DELETE
    if now is Kind.UPDATE and before is not Kind.DELETE:
        return before
    return None


def fast(
    frames: Iterable[Frame], listed: Mapping[str, ListedTable], order: Sequence[str], max_bytes: int
) -> list[Step] | None:
    """The statements for these frames, `order` being the tables with parents first; None when there is no such plan."""
    piles: dict[str, _Pile] = {}
    for frame in frames:
        table = listed.get(frame.table)
        if table is None or frame.loose or frame.kind not in _BULK or not same_key(frame, table):
            return None
        piles.setdefault(frame.table, _Pile(table)).frames.append(frame)
    updated = {name for name, pile in piles.items() if any(frame.kind is Kind.UPDATE for frame in pile.frames)}
    if any((pile.table.table.parents - {name}) & updated for name, pile in piles.items()):
        return None  # the update of a parent may cascade into rows of the child that this unit sets too
    puts: list[Step] = []
    deletes: list[Step] = []
    for name in order:
        if name in piles:
            steps = piles[name].steps(max_bytes)
            if steps is None:
                return None
            if any(frame.unchecked for frame in piles[name].frames):
                steps = [replace(step, unchecked=True) for step in steps]
            puts += [step for step in steps if step.kind is not Kind.DELETE]
            deletes = [step for step in steps if step.kind is Kind.DELETE] + deletes
    return puts + deletes


def _keys(frame: Frame, table: ListedTable) -> list[Key] | None:
    """The key of each row; None where one does not begin with its key."""
    try:
        return keys_of(frame, len(table.key))
    except MessageRefused:
        return None


def same_key(frame: Frame | Step, table: ListedTable) -> bool:
    """Whether the sender's table has the key that it has here; else its rows are not told apart by what tells them apart here, and
    replaying such a frame fails, and that alone."""
    names = tuple(column.name for column in table.key)
    if frame.kind is Kind.DELETE:
        return frame.columns == names
    return frame.columns[: len(names)] == names and frame.key in (0, len(names))


def ordered(frames: Iterable[Frame], listed: Mapping[str, ListedTable]) -> Iterator[Step]:
    """The frames in their original order as statements in which no key stands twice."""
    for frame in frames:
        table = listed.get(frame.table)
        if frame.loose:
            yield from single([frame])
            continue
        if frame.kind is not Kind.UPDATE or frame.count == 1 or table is None or not same_key(frame, table):
            yield _step(frame, frame.count, frame.rows)
            continue
        keys = _keys(frame, table)
        if keys is None:  # the bad row fails alone
            yield from single([frame])
            continue
        seen: set[Key] = set()
        run: list[str] = []
        for key, row in zip(keys, frame.texts(), strict=True):
            if key in seen:
                yield _step(frame, len(run), SEPARATOR.join(run))
                seen, run = set(), []
            seen.add(key)
            run.append(row)
        yield _step(frame, len(run), SEPARATOR.join(run))


def single(frames: Iterable[Frame]) -> Iterator[Step]:
    """The frames in their original order, one change a step."""
    for frame in frames:
        for row in frame.texts():
            yield _step(frame, 1, row)


def halves(step: Step) -> tuple[Step, Step]:
    """A step of several rows as two."""
    rows = step.rows.split(SEPARATOR)
    middle = len(rows) // 2
    left, right = rows[:middle], rows[middle:]
    return (
        replace(step, count=len(left), rows=SEPARATOR.join(left)),
        replace(step, count=len(right), rows=SEPARATOR.join(right)),
    )


def _step(frame: Frame, count: int, rows: str) -> Step:
    return Step(frame.table, frame.kind, frame.columns, count, rows, frame.key, frame.unchecked)


def _packed(rows: Iterable[tuple[Kind, tuple[str, ...], int, str]], table: str, max_bytes: int) -> Iterator[Step]:
    """Neighbours joined into statements of about `max_bytes`."""
    head: tuple[Kind, tuple[str, ...]] | None = None
    texts: list[str] = []
    count = size = 0
    for kind, columns, number, text in rows:
        if texts and head is not None and (head != (kind, columns) or size + len(text) > max_bytes):
            yield Step(table, head[0], head[1], count, SEPARATOR.join(texts))
            texts, count, size = [], 0, 0
        head = (kind, columns)
        texts.append(text)
        count += number
        size += len(text)
    if texts and head is not None:
        yield Step(table, head[0], head[1], count, SEPARATOR.join(texts))
