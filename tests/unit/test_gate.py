"""The gate's rules, and any order of arrival: what comes out is the log, once and in order (TRAPS 8–11, 34, 35)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.changes import GENESIS, Position
from common.errors import MessageRefused, NeedsFullSync
from common.wire import Header, MessageKind, Verified
from consumer.gate import Assembly, Verdict, judge


def batch(
    sequence: int,
    *,
    previous: bytes | None = None,
    epoch: int = 1,
    sender: str = "st1",
    first: bool = True,
    last: bool = True,
) -> Verified:
    header = Header(
        version=1,
        kind=MessageKind.BATCH,
        cluster="mft",
        sender=sender,
        audience="*",
        epoch=epoch,
        sequence=sequence,
        previous=mark(sequence - 1) if previous is None else previous,
        issued_ms=0,
        expires_ms=0,
        first=first,
        last=last,
    )
    return Verified(header, b"", b"", mark(sequence), 100)


def mark(sequence: int) -> bytes:
    return sequence.to_bytes(32, "big")


AT_5 = Position(1, 5, mark(5))


def verdict(message: Verified, position: Position = AT_5) -> Verdict:
    return judge(position, "st1", message.header, message.hash)


def test_only_the_next_batch_is_applied() -> None:
    assert verdict(batch(6)) is Verdict.APPLY
    assert verdict(batch(7)) is Verdict.HOLD
    assert verdict(batch(5)) is Verdict.DROP
    assert verdict(batch(1)) is Verdict.DROP


def test_a_batch_of_anybody_but_the_primary_is_refused() -> None:
    with pytest.raises(MessageRefused) as refused:
        verdict(batch(6, sender="st2"))
    assert refused.value.kind == "sender"


def test_a_lower_epoch_is_refused_and_a_higher_one_that_continues_the_chain_goes_on() -> None:
    """TRAPS 35."""
    at = Position(2, 5, mark(5))
    with pytest.raises(MessageRefused) as refused:
        verdict(batch(6), at)
    assert refused.value.kind == "epoch"
    assert verdict(batch(6, epoch=3), at) is Verdict.APPLY


def test_a_batch_that_does_not_continue_this_history_needs_a_full_synchronization() -> None:
    with pytest.raises(NeedsFullSync, match="history"):
        verdict(batch(6, previous=b"x" * 32))


def test_another_batch_under_the_position_s_own_sequence_is_another_history() -> None:
    with pytest.raises(NeedsFullSync, match="history"):
        judge(AT_5, "st1", batch(5).header, b"y" * 32)


@given(st.data())
def test_whatever_the_order_and_the_repetition_the_log_comes_out_once_and_in_order(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    messages: list[Verified] = []
    for size in sizes:
        start = len(messages) + 1
        messages += [batch(start + i, first=i == 0, last=i == size - 1) for i in range(size)]
    arrivals = data.draw(st.permutations(messages + data.draw(st.lists(st.sampled_from(messages), max_size=5))))
    assembly = Assembly(Position(1, 0, GENESIS), "st1", hold_bytes=1 << 20)
    for message in arrivals:
        assembly.offer(message)
    assert [[one.header.sequence for one in unit] for unit in assembly.ready] == _units(sizes)
    assert assembly.position.sequence == len(messages)
    assert not assembly.waiting


def _units(sizes: list[int]) -> list[list[int]]:
    found, at = [], 1
    for size in sizes:
        found.append(list(range(at, at + size)))
        at += size
    return found


def test_an_incomplete_change_set_is_not_ready() -> None:
    """TRAPS 1: a change set that spans several batches is one unit."""
    assembly = Assembly(Position(1, 0, GENESIS), "st1", hold_bytes=1 << 20)
    assembly.offer(batch(1, last=False))
    assert assembly.ready == []
    assembly.offer(batch(2, first=False))
    assert len(assembly.ready) == 1


def test_a_batch_that_begins_in_the_middle_of_a_change_set_is_malformed() -> None:
    assembly = Assembly(Position(1, 0, GENESIS), "st1", hold_bytes=1 << 20)
    assembly.offer(batch(1, last=False))
    with pytest.raises(MessageRefused) as refused:
        assembly.offer(batch(2, first=True))
    assert refused.value.kind == "malformed"


def test_what_is_held_is_bounded() -> None:
    assembly = Assembly(Position(1, 0, GENESIS), "st1", hold_bytes=250)
    for sequence in (3, 4, 5):
        assert assembly.offer(batch(sequence)) is Verdict.HOLD
    for sequence in (1, 2):
        assembly.offer(batch(sequence))
    assert assembly.position.sequence == 4
    assert assembly.offer(batch(5)) is Verdict.APPLY


def test_committed_change_sets_leave_and_the_position_is_told() -> None:
    assembly = Assembly(Position(1, 0, GENESIS), "st1", hold_bytes=1 << 20)
    for sequence in (1, 2, 3):
        assembly.offer(batch(sequence))
    assert assembly.taken(2) == Position(1, 2, mark(2))
    assert len(assembly.ready) == 1
    assembly.reset(Position(1, 2, mark(2)))
    assert assembly.ready == []
    assert assembly.offer(batch(3)) is Verdict.APPLY
