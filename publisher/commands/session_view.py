"""How a session looks to a person: bars while it runs (plain lines where there is no terminal), a table at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from common.session import Mode, Phase
from common.sessions import Request

Show = Callable[[Request], None]
_SHARE = {Phase.REQUESTED: 0.0, Phase.PAUSING: 0.02, Phase.MANIFEST: 0.1, Phase.CHUNKS: 0.2, Phase.INSTALLING: 0.75}
_KEYS = 5


@contextmanager
def watching() -> Iterator[Show]:
    """Shows a session as it goes on."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as progress:
            yield _Bars(progress).show
    else:
        yield lines()


def lines() -> Show:
    """Shows how it goes on in plain lines on stderr."""
    return _Lines().show


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, request: Request) -> None:
        for node in request.progress.get("nodes", []):
            name = node["name"]
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=1.0, told="")
            self._progress.update(self._tasks[name], completed=_share(request, node), told=_told(node))


class _Lines:
    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._console = Console(stderr=True, width=160, highlight=False)

    def show(self, request: Request) -> None:
        for node in request.progress.get("nodes", []):
            if self._said.get(node["name"]) != node["phase"]:
                self._said[node["name"]] = node["phase"]
                self._console.print(f"{node['name']}: {_told(node)}", markup=False)


def _share(request: Request, node: dict[str, Any]) -> float:
    """How much of the work is done, roughly: between 0 and 1."""
    phase = Phase(node["phase"])
    if phase.over:
        return 1.0
    begun = _SHARE[phase]
    if phase is not Phase.CHUNKS:
        return begun
    looked = request.progress.get("rows", {})
    part: float = looked.get("looked_at", 0) / max(1, looked.get("of", 0))
    return begun + (_SHARE[Phase.INSTALLING] - begun) * min(1.0, part)


def _told(node: dict[str, Any]) -> str:
    parts = [node["phase"]]
    if node["chunks_sent"]:
        parts.append(f"{node['chunks_sent']} chunks, {node['rows_received']} rows, {_bytes(node['bytes_sent'])}")
    if node["reason"]:
        parts.append(node["reason"])
    return " · ".join(parts)


def show(request: Request, document: dict[str, Any]) -> None:
    """The end of it, for a person."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(_render(request, document))


def _render(request: Request, document: dict[str, Any]) -> RenderableType:
    position = document["position"]
    at = "" if position is None else f" at epoch {position['epoch']}, sequence {position['sequence']}"
    parts: list[RenderableType] = [Text(f"{request.title}{at}")]
    if request.reason:
        parts.append(Text(f"it did not come to its end: {request.reason}", style="red"))
    nodes = request.progress.get("nodes", [])
    if nodes:
        parts.append(_table(request.mode, nodes))
    for node in nodes:
        if node["reason"]:
            parts.append(Text(f"{node['name']}: {node['reason']}"))
        parts += [Text(line) for line in _differences(request.mode, node)]
        if node["admin_url"]:
            parts.append(Text(f"{node['name']}: {node['admin_url']}"))
    return Group(*parts)


def _table(mode: Mode, nodes: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("node", no_wrap=True)
    table.add_column("result", no_wrap=True)
    words = ("inserted", "updated", "deleted") if mode is Mode.SYNC else ("missing", "different", "extra")
    for name in (*words, "chunks", "bytes", "seconds"):
        table.add_column(name, justify="right")
    for node in nodes:
        result = str(node["result"])
        if mode is not Mode.SYNC and result == "done":
            result = "equal" if node["equal"] else "differs"
        style = "green" if result in ("done", "equal") else "red"
        counts = [str(node["rows"][key]) for key in ("inserted", "updated", "deleted")]
        table.add_row(
            node["name"],
            Text(result, style=style),
            *counts,
            str(node["chunks_sent"]),
            _bytes(node["bytes_sent"]),
            f"{node['seconds']:.1f}",
        )
    return table


def _differences(mode: Mode, node: dict[str, Any]) -> Iterator[str]:
    """Table by table, with keys where they are known."""
    if mode is Mode.SYNC:
        return
    for table in node["tables"]:
        sorts = [
            f"{table[f'rows_{sort}']} {sort}{_some(table['keys'][sort], table[f'rows_{sort}'])}"
            for sort in ("missing", "different", "extra")
            if table[f"rows_{sort}"]
        ]
        yield f"{node['name']}: table {table['table']}: {'; '.join(sorts)}"


def _some(keys: list[str], count: int) -> str:
    if not keys:
        return ""
    more = " …" if count > _KEYS else ""
    return f" ({', '.join(keys[:_KEYS])}{more})"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
