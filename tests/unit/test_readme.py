"""The README's examples and tables are true."""

import json
import re
import sqlite3
import tomllib
from pathlib import Path

from typer.main import get_command

from common.lists import parse_tables
from common.main import build
from common.settings import load_settings

README = Path(__file__).parents[2].joinpath("README.md").read_text()


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_settings_example_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "stsync.toml"
    path.write_text(example("toml"))
    settings = load_settings(path)
    assert settings.cluster.names == ("st1", "st2")
    assert settings.trust.key == tmp_path / "st1.key"


def test_the_list_example_is_valid() -> None:
    text = re.search(r"```\n(# table .*?)```", README, re.DOTALL)
    assert text is not None
    assert [rule.pattern for rule in parse_tables(text[1], "README")] == [
        "account",
        "server_parameter",
        "application",
        "transfer_*",
    ]


def test_the_outbox_example_is_valid_sql_and_json() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE stsync_outbox (table_name, kind, columns_json, rows_json)")
    connection.execute(example("sql"))
    ((columns, row),) = connection.execute("SELECT columns_json, rows_json FROM stsync_outbox").fetchall()
    assert len(json.loads(columns)) == len(json.loads(row)) == 3
    connection.close()


def test_every_command_stands_in_the_readme_and_every_one_there_exists() -> None:
    command = get_command(build())
    names = set(getattr(command, "commands", {}))
    told = set(re.findall(r"`stsync ([a-z]+)", README))
    assert told == names


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^\w-]", one)[0] for one in project["dependencies"] + project["optional-dependencies"]["dev"]}
    table = README.split("## Libraries")[1].lower()
    told = {"psycopg": "psycopg 3", "sqlalchemy": "sqlalchemy 2"}
    assert [name for name in wanted if told.get(name.lower(), name.lower()) not in table] == []
