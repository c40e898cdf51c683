"""The composition root of the `stsync` command: both sides register what they bring, nothing is imported across."""

import gc
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import typer

from common.errors import StsyncError

COMMANDS_GROUP = "stsync.commands"


def build(command: str | None = None) -> typer.Typer:
    """The whole command, from every room's `stsync.commands` entry points; or only `command`, where there is one of that name, so
    that nothing is loaded for others."""
    app = typer.Typer(
        name="stsync", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback(help="Keeps the configuration of a cluster of managed-file-transfer servers equal.")(_nothing_before)
    points = sorted(entry_points(group=COMMANDS_GROUP), key=lambda one: one.name)
    for point in [one for one in points if one.name == command] or points:
        register: Callable[[typer.Typer], None] = point.load()
        register(app)
    return app


def _loaded(command: str | None) -> typer.Typer:
    """What is loaded stays, so that nobody needs to look through it for what can go: a fifth of the time that it takes."""
    gc.disable()
    app = build(command)
    gc.freeze()
    gc.enable()
    return app


def _nothing_before() -> None:
    """No command has anything done before it."""


def main() -> None:
    """Run the command; an expected error is one sentence on stderr and its documented exit code."""
    try:
        _loaded(sys.argv[1] if len(sys.argv) > 1 else None)()
    except StsyncError as exc:
        from common.settings import located  # noqa: PLC0415 (loads for long, and `pki` has no use for it)

        sys.stderr.write(f"stsync: {located(str(exc))}\n")
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stsync: interrupted\n")
        sys.exit(130)
    finally:
        gc.freeze()  # nor is all of it looked through at the end
