"""So that `python -m common` is the `stsync` command where no script is installed."""

from common.main import main

main()
