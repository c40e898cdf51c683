"""What the demo shows on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo.compare import Compared
from deploy.demo.steps import LOCAL, Measured

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of progress."""
    console.print(text, markup=False)


def progress(step: Measured) -> None:
    """One step, as soon as it has arrived everywhere."""
    lags = ", ".join(f"{node} {lag:.1f} ms" for node, lag in step.lag_ms.items())
    say(f"  {step.title}: {step.rows} rows, seen on {lags}")


def steps(measured: list[Measured]) -> None:
    """All steps with their lag per secondary."""
    table = Table(title="commit on the primary → visible in each secondary's database")
    table.add_column("step")
    table.add_column("rows", justify="right")
    table.add_column("transaction ms", justify="right")
    for node in measured[0].lag_ms:
        table.add_column(f"{node} ms", justify="right")
    for step in measured:
        lags = (f"{lag:.1f}" for lag in step.lag_ms.values())
        table.add_row(step.title, str(step.rows), f"{step.transaction_ms:.1f}", *lags)
    console.print(table)


def local(values: dict[str, str]) -> None:
    """The parameter that is each node's own."""
    say(f"{LOCAL} is local and stays so: " + ", ".join(f"{node} {value}" for node, value in values.items()))


def status(document: dict[str, Any]) -> None:
    """What `stsync status` says on the primary."""
    table = Table(title=f"stsync status: {document['node']} is {document['role']}, sequence {document['sequence']}")
    for column in ("node", "state", "sequence", "behind", "lag ms", "quarantined", "reason"):
        table.add_column(column)
    for one in document["nodes"]:
        lag = "" if one["lag_ms"] is None else f"{one['lag_ms']:.1f}"
        words = (one["name"], one["state"], one["sequence"], one["behind"], lag, one["quarantined"], one["reason"] or "")
        table.add_row(*map(str, words))
    console.print(table)


def verdict(compared: list[Compared]) -> bool:
    """The comparison's result; True when every table is equal on every node."""
    unequal = [one for one in compared if not one.equal]
    nodes = sorted({one.node for one in compared})
    tables = {one.table: one.rows for one in compared}
    for one in unequal:
        say(
            f"NOT EQUAL: {one.table} on {one.node}: {one.missing} rows missing, {one.extra} too many, "
            f"{one.different} different; {'; '.join(one.examples)}"
        )
    if unequal:
        say(f"FAILED: {len(unequal)} of {len(compared)} comparisons differ")
        return False
    say(f"EQUAL: {len(tables)} tables, {sum(tables.values())} rows, compared row by row on {' and '.join(nodes)}")
    return True
