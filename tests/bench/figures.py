"""Percentiles, medians of several runs, and what the machine did meanwhile."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One quantity over several runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """The median of the runs with the extremes."""
        return cls(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def forget_peak(pid: int) -> None:
    """Have the kernel begin anew with a process's peak memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_mb(pid: int) -> float:
    """A process's peak resident memory, in MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/status tells no VmHWM")


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, in user and system mode, all threads."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS_A_SECOND


def machine_busy_s() -> float:
    """Processor seconds that the whole machine has spent on anything but waiting."""
    words = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(words) - words[3] - words[4]) / _TICKS_A_SECOND


def wait_quiet(limit: float = 0.2, patience_s: float = 30.0) -> float:
    """Wait until the machine does little else; the share of its processors that was busy at the last look."""
    cores = os.cpu_count() or 1
    until = time.monotonic() + patience_s
    while True:
        before, at = machine_busy_s(), time.monotonic()
        time.sleep(0.5)
        busy = (machine_busy_s() - before) / (time.monotonic() - at) / cores
        if busy < limit or time.monotonic() > until:
            return busy
