"""`python -m deploy.demo.sql SETTINGS STATEMENT`: one SQL statement on a demo node's database, whatever its engine."""

import sys
import tomllib
from pathlib import Path

from sqlalchemy import text

from deploy.demo.databases import engine, reported
from deploy.demo.errors import DemoError


def main() -> None:
    """Run the statement, print its rows or how many it changed."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m deploy.demo.sql SETTINGS.toml 'STATEMENT'")
    try:
        url = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["database"]["url"]
        with reported("run the statement"), engine(url).begin() as link:
            result = link.execute(text(sys.argv[2]))
            changed = {1: "1 row changed", -1: "done"}.get(result.rowcount, f"{result.rowcount} rows changed")
            lines = ["\t".join(map(str, row)) for row in result] if result.returns_rows else [changed]
    except (DemoError, OSError) as exc:
        sys.exit(str(exc))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
