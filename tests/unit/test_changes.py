"""The change set's byte stream: whatever goes in comes out, cut anywhere; whatever else comes in is refused."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.changes import SEPARATOR, Frame, Kind, decode_frames, encode_frame, keys_of
from common.errors import MessageRefused

VALUES = st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**63 - 1))
ROWS = st.lists(st.lists(VALUES, min_size=2, max_size=4), min_size=1, max_size=5)


def frame(rows: list[list[object]], kind: Kind = Kind.INSERT) -> Frame:
    texts = [orjson.dumps(row).decode() for row in rows]
    return Frame("t", kind, ("a", "b"), len(texts), SEPARATOR.join(texts))


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(1, 40))
def test_frames_survive_being_cut_at_any_byte(batches: list[list[list[object]]], size: int) -> None:
    frames = [frame(rows) for rows in batches]
    stream = b"".join(map(encode_frame, frames))
    parts = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert list(decode_frames(parts, max_frame_bytes=1 << 20)) == frames


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frames_are_refused_and_nothing_else_happens(data: bytes) -> None:
    kind = None
    try:
        list(decode_frames([data], max_frame_bytes=1 << 10))
    except MessageRefused as exc:
        kind = exc.kind
    assert kind in ({"malformed", "size"} if data else {None})


def test_a_stream_that_ends_in_the_middle_is_refused() -> None:
    with pytest.raises(MessageRefused, match="middle"):
        list(decode_frames([encode_frame(frame([[1, 2]]))[:-1]], max_frame_bytes=1 << 20))


def test_a_frame_above_the_bound_is_refused_before_it_is_gathered() -> None:
    """TRAPS 17: sizes are bounded at each step."""
    with pytest.raises(MessageRefused, match="bound") as refused:
        list(decode_frames([(1 << 30).to_bytes(4, "big")], max_frame_bytes=1 << 20))
    assert refused.value.kind == "size"


def test_a_frame_that_announces_more_rows_than_it_has_is_refused() -> None:
    wrong = encode_frame(Frame("t", Kind.INSERT, ("a",), 2, '["1"]'))
    with pytest.raises(MessageRefused, match="announces"):
        list(decode_frames([wrong], max_frame_bytes=1 << 20))


@given(st.lists(st.tuples(st.text(), VALUES), min_size=1, max_size=6))
def test_keys_are_found_whatever_the_text_contains(pairs: list[tuple[str, object]]) -> None:
    """Quotes, brackets, separators and line feeds inside values never confuse the reader of keys."""
    found = keys_of(frame([[name, value, "rest"] for name, value in pairs]), 2)
    assert found == [(orjson.dumps(name).decode(), orjson.dumps(value).decode()) for name, value in pairs]


def test_keys_of_mariadb_and_of_sqlite_are_found() -> None:
    """MariaDB writes a blank after the comma, SQLite tags reals and blobs."""
    spaced = Frame("t", Kind.UPDATE, ("a", "b", "c"), 1, '["x", "1", null]')
    assert keys_of(spaced, 2) == [('"x"', '"1"')]
    tagged = Frame("t", Kind.UPDATE, ("a", "b"), 2, '[{"x":"00FF"},1],\n[{"r":"1.5"},2]')
    assert keys_of(tagged, 1) == ['{"x":"00FF"}', '{"r":"1.5"}']


def test_a_row_without_its_key_is_refused() -> None:
    with pytest.raises(MessageRefused, match="key"):
        keys_of(Frame("t", Kind.DELETE, ("a", "b"), 1, '["x"]'), 2)


def test_a_key_has_one_text_however_it_was_escaped() -> None:
    frame = Frame("t", Kind.UPDATE, ("k", "l", "v"), 2, '["a\\/b",1,2],\n["a\\u002fb",1,3]')
    assert keys_of(frame, 1) == ['"a/b"', '"a/b"']
    assert keys_of(frame, 2) == [('"a/b"', "1"), ('"a/b"', "1")]
