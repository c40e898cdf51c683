"""The figures side by side: for the terminal, and as Markdown for the README."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure

Figures = Mapping[str, Figure]
NONE = "–"


@dataclass(frozen=True)
class Line:
    """A line of the table: what it tells, which figures, how they are written, and what they should reach."""

    title: str
    names: tuple[str, ...]
    mark: str
    digits: int = 0
    highest: bool = False  # show the highest of the figures, not each


LINES = (
    Line("lag at 100/s, p50, ms", ("lag_p50_ms",), "≤ 5", 2),
    Line("lag at 100/s, p99, ms", ("lag_p99_ms",), "≤ 20", 2),
    Line("10,000 transactions, by their client, /s", ("client_tx_s",), NONE),
    Line("10,000 transactions, replicated to both, /s", ("replicated_tx_s",), "≥ 0.85 × the database's own"),
    Line("behind after the last commit, s", ("behind_s",), "≤ 0.1", 3),
    Line("writer without triggers, no service, tx/s", ("bare_tx_s",), NONE),
    Line("writer with triggers, no service, tx/s", ("captured_tx_s",), NONE),
    Line("what triggers cost that writer, ×", ("trigger_cost",), "≤ 1.4", 2),
    Line("bulk 1 × 100,000, rows/s to both", ("bulk_1x100000_rows_s",), "≥ 45,000"),
    Line("of which the writer's own statement, s", ("bulk_1x100000_source_s",), NONE, 2),
    Line("bulk 100 × 1,000, rows/s to both", ("bulk_100x1000_rows_s",), "≥ 45,000"),
    Line("of which the writer's own statements, s", ("bulk_100x1000_source_s",), NONE, 2),
    Line("peak memory of the primary, 1 × 100,000, MB", ("peak_st1_mb",), "≤ 150"),
    Line("peak memory of a secondary, 1 × 100,000, MB", ("peak_st2_mb", "peak_st3_mb"), "≤ 150", 0, highest=True),
    Line("idle primary, % of a core", ("idle_st1_percent",), "< 1", 2),
    Line("idle secondary, % of a core", ("idle_st2_percent", "idle_st3_percent"), "< 1", 2, highest=True),
)


def misses(label: str, own: Figures, peer: Figures | None) -> list[str]:
    """Which marks the medians do not reach."""
    wanted: list[tuple[str, Callable[[float], bool], str]] = [
        ("lag_p50_ms", lambda v: v <= 5, "≤ 5"),
        ("lag_p99_ms", lambda v: v <= 20, "≤ 20"),
        ("behind_s", lambda v: v <= 0.1, "≤ 0.1"),
        ("trigger_cost", lambda v: v <= 1.4, "≤ 1.4"),
        ("bulk_1x100000_rows_s", lambda v: v >= 45_000, "≥ 45,000"),
        ("bulk_100x1000_rows_s", lambda v: v >= 45_000, "≥ 45,000"),
        *((f"peak_{node}_mb", lambda v: v <= 150, "≤ 150") for node in ("st1", "st2", "st3")),
        *((f"idle_{node}_percent", lambda v: v < 1, "< 1") for node in ("st1", "st2", "st3")),
    ]
    found = [
        f"{label}: {name} is {own[name].median:,.2f}, wanted {text}"
        for name, reached, text in wanted
        if name in own and not reached(own[name].median)
    ]
    if peer is not None and "replicated_tx_s" in own and "replicated_tx_s" in peer:
        share = own["replicated_tx_s"].median / peer["replicated_tx_s"].median
        if share < 0.85:
            found.append(f"{label}: replicated_tx_s is {share:.2f} × the database's own, wanted ≥ 0.85")
    return found


def show(columns: Mapping[str, Figures], notes: list[str], missed: list[str]) -> None:
    """For people."""
    console = Console(width=max(100, 46 + 26 * len(columns)))
    table = Table(title="median (least–most) of the runs")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("mark", justify="right")
    for line in _measured(columns):
        table.add_row(line.title, *(_cell(line, figures) for figures in columns.values()), line.mark)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    for one in missed:
        console.print(f"missed: {one}", style="red", highlight=False)
    if not missed:
        console.print("Every mark that was measured is reached.", style="green")


def markdown(columns: Mapping[str, Figures], notes: list[str]) -> str:
    """For the README."""
    lines = ["| | " + " | ".join(columns) + " | mark |", "|---" + "|---:" * (len(columns) + 1) + "|"]
    for line in _measured(columns):
        cells = " | ".join(_cell(line, figures) for figures in columns.values())
        lines.append(f"| {line.title} | {cells} | {line.mark} |")
    return "\n".join([*lines, "", *notes])


def _measured(columns: Mapping[str, Figures]) -> list[Line]:
    """The lines of the jobs that were done."""
    return [line for line in LINES if any(name in figures for figures in columns.values() for name in line.names)]


def _cell(line: Line, figures: Figures) -> str:
    known = [figures[name] for name in line.names if name in figures]
    if not known:
        return NONE
    shown = max(known, key=lambda one: one.median) if line.highest else known[0]
    median, least, most = (f"{value:,.{line.digits}f}" for value in (shown.median, shown.least, shown.most))
    return median if least == most else f"{median} ({least}–{most})"
