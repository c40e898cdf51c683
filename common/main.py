"""The composition root of the `stsync` command: both sides register what they bring, nothing is imported across."""

import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import typer

from common.errors import StsyncError

COMMANDS_GROUP = "stsync.commands"


def build() -> typer.Typer:
    """The whole command, from every room's `stsync.commands` entry point."""
    app = typer.Typer(
        name="stsync",
        help="Keeps the configuration of a cluster of managed-file-transfer servers equal.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda one: one.name):
        register: Callable[[typer.Typer], None] = point.load()
        register(app)
    return app


def main() -> None:
    """Run the command; an expected error is one sentence on stderr and its documented exit code."""
    try:
        build()()
    except StsyncError as exc:
        sys.stderr.write(f"stsync: {exc}\n")
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stsync: interrupted\n")
        sys.exit(130)
