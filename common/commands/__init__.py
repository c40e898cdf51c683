"""Commands that belong to no side: keys, broker definitions, run, status."""

import typer

from common.commands import broker, pki, run, status


def register(app: typer.Typer) -> None:
    """Add them to the `stsync` command."""
    for module in (pki, broker, run, status):
        module.register(app)
