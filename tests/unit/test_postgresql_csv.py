"""What COPY is given means what the JSON it is made of means, or is None: then the rows go in as JSON."""

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.dialects.postgresql_writer import as_csv

NASTY = [
    "a",
    "",
    '"',
    "\\",
    ",",
    "\n",
    "\r",
    "\t",
    "/",
    "],\n[",
    '",null,"',
    "null",
    "\\.",
    "\n\\.\n",
    "é\U0001f600",
    "[",
    "]",
    " ",
]
VALUE = st.none() | st.lists(st.sampled_from(NASTY) | st.characters(codec="utf-8"), max_size=6).map("".join)
ROWS = st.lists(st.lists(VALUE, min_size=1, max_size=4), min_size=1, max_size=5)


def as_json(rows: list[list[str | None]]) -> str:
    return ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)


def read(text: str) -> Iterator[list[str | None]]:
    """CSV as the manual of COPY has it, without its end-of-data mark."""
    row: list[str | None] = []
    place = 0
    while True:
        if text.startswith('"', place):
            begin, value = place + 1, ""
            while True:
                end = text.index('"', begin)
                value += text[begin:end]
                begin = end + 1
                if not text.startswith('"', begin):
                    break
                value, begin = value + '"', begin + 1
            place = begin
            row.append(value)
        else:
            assert text.startswith("null", place)
            place += 4
            row.append(None)
        if place == len(text) or text[place] == "\n":
            yield row
            row = []
            if place == len(text):
                return
        else:
            assert text[place] == ","
        place += 1


@given(ROWS)
def test_it_means_what_the_json_means_or_is_left_alone(rows: list[list[str | None]]) -> None:
    text = as_csv(as_json(rows))
    if text is not None:
        assert list(read(text)) == rows
        assert not any(line.startswith("\\.") for line in re.split("[\r\n]", text)[1:])


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([["1", None, "b, c"], [None, "x", "null"]], id="nulls"),
        pytest.param([['say "hi"', "C:\\temp\\new", "two\nlines\ttab", ""]], id="escapes"),
        pytest.param([["],\n[", "[", '","'], ["a", None, None]], id="what looks like structure"),
    ],
)
def test_what_is_common_is_copied(rows: list[list[str | None]]) -> None:
    text = as_csv(as_json(rows))
    assert text is not None
    assert list(read(text)) == rows


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param('["a", "b"]', id="space before a value"),
        pytest.param('["a" ,"b"]', id="space after a value"),
        pytest.param('["a",1]', id="number"),
        pytest.param('["a",{"x":"00"}]', id="object"),
        pytest.param('["a",["b"]]', id="array"),
        pytest.param('["a"],["b"]', id="another separator"),
        pytest.param('["a"]\n["b"]', id="no separator"),
        pytest.param('["a","b"', id="no end"),
        pytest.param('["a","b', id="no end of a string"),
        pytest.param('"a","b"]', id="no begin"),
        pytest.param('["a\nb"]', id="a line feed as it is"),
        pytest.param('["a],\n[b"]', id="a separator as it is"),
        pytest.param('["\\u0001"]', id="a control character"),
        pytest.param('["\\\n"]', id="an escape of nothing"),
        pytest.param('["a\\n\\\\.\\nb"]', id="COPY's end of data"),
        pytest.param("[null]", id="no string"),
        pytest.param("", id="nothing"),
    ],
)
def test_what_csv_cannot_say_is_left_alone(rows: str) -> None:
    assert as_csv(rows) is None
