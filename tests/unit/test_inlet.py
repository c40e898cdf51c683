"""What the primary says in a session arrives in order and once, whatever happens on the way."""

import random

from hypothesis import given
from hypothesis import strategies as st

from common.session import Chunk
from consumer.inlet import Inlet


def chunk(number: int) -> Chunk:
    return Chunk(0, 0, number, "")


@given(st.integers(1, 100), st.randoms(use_true_random=False), st.floats(0, 0.9))
def test_everything_comes_once_and_in_order_as_long_as_what_is_missing_is_sent_again(
    count: int, chance: random.Random, loss: float
) -> None:
    inlet = Inlet(received=1)
    inlet.announce(1 + count)
    taken: list[int] = []
    for _ in range(10_000):
        first = inlet.missing
        if first is None:
            break
        sent = [number for number in range(first, min(first + 64, count + 2)) if chance.random() >= loss]
        sent += [chance.randint(1, count + 1) for _ in range(3)]
        chance.shuffle(sent)
        for number in sent:
            for got, said in inlet.take(number, chunk(number)):
                assert isinstance(said, Chunk)
                assert said.count == got
                taken.append(got)
    assert taken == list(range(2, count + 2))


def test_what_comes_far_too_early_is_not_kept_without_bound() -> None:
    inlet = Inlet()
    for number in range(2, 10_000):
        assert inlet.take(number, chunk(number)) == []
    assert len(inlet._held) <= 64
    assert inlet.missing == 1


def test_a_full_house_does_not_keep_out_what_it_waits_for() -> None:
    inlet = Inlet(received=1)
    for number in range(3, 200):
        inlet.take(number, chunk(number))
    assert [number for number, _ in inlet.take(2, chunk(2))] == list(range(2, 67))
