"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        readable=False,  # reading it says why not, in our words
        help="Settings file; else $STSYNC_CONFIG, else /etc/stsync/stsync.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs go to stderr.")]
