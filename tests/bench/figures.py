"""Percentiles, medians of several runs, and what the machine did meanwhile."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.servers.processes import descendants

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


def family_busy_s() -> float:
    """Processor seconds that this program and all it started have spent, the ended ones included."""
    total = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile: its parent has its time
            continue
        total += sum(int(word) for word in words[11:15])
    return total / _TICKS_A_SECOND


class Neighbours:
    """What share of the processors others use, from its making until it is asked."""

    def __init__(self) -> None:
        self._begun = (time.monotonic(), machine_busy_s() - family_busy_s())

    def share(self) -> float:
        """0 to 1."""
        at, others = self._begun
        used = machine_busy_s() - family_busy_s() - others
        return max(0.0, used / (time.monotonic() - at) / (os.cpu_count() or 1))


def wait_quiet(limit: float, patience_s: float = 10.0) -> None:
    """Wait until others leave the machine alone for a second, but no longer than the patience."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        neighbours = Neighbours()
        time.sleep(1.0)
        if neighbours.share() < limit:
            return


def fsync_ms(directory: Path, times: int = 100) -> list[float]:
    """How long the disk takes to keep 4 KiB: what every commit waits for, several times on its way."""
    taken = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            at = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - at) * 1000)
    return taken
