"""How often the outbox is drained: at once while changes come one by one, more rarely the more of them there are (DESIGN §5)."""

_DENSE_MS = 25.0  # so many ms apart for each change a ms; below one change in 5 ms nothing is gained by waiting


class Cadence:
    """The least time from the beginning of one drain to that of the next.

    A drain, a batch and a commit on every secondary cost the same whether they carry one change or fifty; what they cost under a
    flood of small transactions is taken from its writers. Both bounds in ms.
    """

    def __init__(self, shortest_ms: float, longest_ms: float) -> None:
        self._shortest_ms = shortest_ms
        self._longest_ms = max(shortest_ms, longest_ms)

    def pause_s(self, changes: int, elapsed_s: float) -> float:
        """After a drain of so many outbox rows, so long after the one before it: seconds from its beginning."""
        wanted_ms = _DENSE_MS * changes / max(elapsed_s * 1000, self._shortest_ms, 1.0)
        return min(max(wanted_ms, self._shortest_ms), self._longest_ms) / 1000
