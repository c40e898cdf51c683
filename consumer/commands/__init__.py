"""Commands of a secondary's side."""

import typer

from consumer.commands import quarantine


def register(app: typer.Typer) -> None:
    """Add them to the `stsync` command."""
    quarantine.register(app)
