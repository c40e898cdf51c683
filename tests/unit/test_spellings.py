"""Keys of one row are known again, and the database is asked only where it has to be."""

import random
import unicodedata
from collections.abc import Sequence

import pytest

from common.schema import Column, Equality, ListedTable, Table
from consumer import spellings
from consumer.spellings import Spellings


def table(equality: Equality, *, kind: str = "varchar(20)", width: int = 1) -> ListedTable:
    names = tuple(f"k{place}" for place in range(width))
    return ListedTable(Table("t", tuple(Column(name, kind, equality=equality) for name in names), names))


def folded(key: str) -> str:
    plain = unicodedata.normalize("NFKD", key.casefold())
    return "".join(one for one in plain if not unicodedata.combining(one))


class Asked:
    """Numbers keys as a collation without case and accents, and counts the keys of each question."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, _table: ListedTable, keys: Sequence[str]) -> list[int | None]:
        assert len(keys) == len(set(keys))
        self.sizes.append(len(keys))
        numbers = {text: number for number, text in enumerate({folded(key) for key in keys})}
        return [None if "?" in key else numbers[folded(key)] for key in keys]


@pytest.mark.parametrize("at_once", [60, 5_000])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("equality", "width"), [("folded", 1), ("unknown", 1), ("folded", 2)])
def test_every_spelling_is_known(
    monkeypatch: pytest.MonkeyPatch, equality: Equality, width: int, seed: int, at_once: int
) -> None:
    monkeypatch.setattr(spellings, "_BYTES", at_once)
    chance = random.Random(seed)
    words = ["a", "A", "á", "Á", "b", "B", "ab", "aB", "?", "a ", "ß", "ss", "SS"]
    keys = [",".join(f'"{chance.choice(words)}"' for _ in range(width)) for _ in range(40)]
    one, known = table(equality, width=width), Spellings(Asked())
    for begin in range(0, 40, cut := chance.randrange(1, 40)):
        known.keep(one, keys[begin : begin + cut])
    others = [",".join(f'"{chance.choice(words)}"' for _ in range(width)) for _ in range(40)]
    rows = [key if "?" in key else folded(key) for key in (*keys, *others)]
    names = known.names(one, [*keys, *others])
    assert all(
        (x == y) == (row == other)
        for x, row in zip(names, rows, strict=True)
        for y, other in zip(names[:40], rows, strict=False)
    )
    assert set(names[:40]) <= set(keys)
    assert known.alike("t", [names[0]]) >= {key for key, name in zip(keys, names, strict=False) if name == names[0]}


def test_the_database_is_asked_about_those_only_that_may_be_equal() -> None:
    asked = Asked()
    known, one = Spellings(asked), table("folded")
    known.keep(one, [f'"name{number}"' for number in range(1000)])
    known.names(one, [f'"other{number}"' for number in range(1000)])
    assert asked.sizes == []
    assert known.names(one, ['"NAME7"', '"other"', '"NAME8"']) == ['"name7"', '"other"', '"name8"']
    assert known.names(one, ['"NAME7"']) == ['"name7"']
    assert asked.sizes == [4]
    numbers = table("unknown", kind="pg_catalog.numeric")
    known = Spellings(asked)
    known.keep(numbers, [f'"{number}"' for number in range(1000)])
    known.names(numbers, [f'"{number}"' for number in range(1000, 2000)])
    assert asked.sizes == [4]
    known.names(numbers, ['"7.0"', '"NaN"'])
    assert asked.sizes == [4, 1002], "nothing is known of what may equal a text that is no number"
    exact = Spellings(asked)
    exact.keep(table("exact"), ['"a"', '"A"'])
    assert exact.names(table("exact"), ['"A"', '"á"']) == ['"A"', '"á"']
    assert asked.sizes == [4, 1002]
