"""How long to wait before the next try: a pure function, so that its bounds can be tested."""

from collections.abc import Callable

_MAX_DOUBLINGS = 30


def delay_s(attempt: int, *, minimum_s: float, maximum_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait before try number `attempt` (0 is the first retry).

    The wait doubles from `minimum_s` up to `maximum_s`; `random` (0 ≤ x < 1) takes up to half of it away, so
    that the nodes of a cluster do not come back in step.
    """
    full = min(maximum_s, minimum_s * 2.0 ** min(attempt, _MAX_DOUBLINGS))
    return full * (1.0 - random() / 2.0)
