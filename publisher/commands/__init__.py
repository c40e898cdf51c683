"""Commands of the primary's side."""

import typer

from publisher.commands import install


def register(app: typer.Typer) -> None:
    """Add them to the `stsync` command."""
    install.register(app)
