"""Settings: each bad value is told with the place where it stands, file or variable, and its key (INTERFACE, Configuration)."""

from pathlib import Path

import pytest

from common.errors import Misconfigured
from common.settings import Settings, load_settings, located

FILE = """
[cluster]
name = "mft"
nodes = [{{name = "st1"}}]
[node]
name = "st1"
home = "{home}"
[database]
url = "sqlite:///st.db"
[broker]
urls = ["amqp://a:b@c"]
[trust]
key = "st1.key"
certificate = "st1.pem"
authorities = ["ca.pem"]
cluster_key = "cluster.key"
cluster_certificate = "cluster.pem"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "stsync.toml"
    path.write_text(FILE.format(home="/opt/home"))
    return path


def refused(config: Path) -> str:
    with pytest.raises(Misconfigured) as caught:
        load_settings(config)
    return str(caught.value)


def of(config: Path, **variables: str) -> Settings:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        return load_settings(config)


@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1", "1e17"])
@pytest.mark.parametrize(
    "key",
    [
        "sessions.timeout_s",
        "intervals.heartbeat_s",
        "journal.max_age_hours",
        "trust.data_key_hours",
        "broker.connect_timeout_s",
    ],
)
def test_a_time_is_a_number_that_clocks_can_tell(config: Path, key: str, value: str) -> None:
    section, name = key.split(".")
    text = config.read_text()
    if f"[{section}]" in text:
        config.write_text(text.replace(f"[{section}]", f"[{section}]\n{name} = {value}"))
    else:
        config.write_text(f"{text}[{section}]\n{name} = {value}\n")
    assert refused(config).startswith(f"{config}: {key}: ")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("STSYNC_CLUSTER__MODE", "x", "environment STSYNC_CLUSTER__MODE: cluster.mode: "),
        ("STSYNC_BROKER__URLS", "http://x", "environment STSYNC_BROKER__URLS: broker.urls: "),
        ("STSYNC_BROKER__URLS", "[]", "environment STSYNC_BROKER__URLS: broker.urls: is empty"),
        ("STSYNC_TRUST__AUTHORITIES", '["', "environment STSYNC_TRUST__AUTHORITIES: trust.authorities: "),
        ("STSYNC_NODE", "x", "environment STSYNC_NODE: "),
        ("STSYNC_NODE__NAM", "x", "environment STSYNC_NODE__NAM: node.nam: unknown key"),
        ("STSYNC_DATABSE__URL", "sqlite:////x", "environment STSYNC_DATABSE__URL: unknown key"),
        ("STSYNC_DATABASE__URL__X", "y", "environment STSYNC_DATABASE__URL__X: database.url: "),
        ("STSYNC_CLUSTER__NODES", "[{", "environment STSYNC_CLUSTER__NODES: the value cannot be read"),
    ],
)
def test_what_the_environment_says_is_not_laid_to_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert refused(config).startswith(told)


def test_what_a_variable_does_not_say_is_not_laid_to_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSYNC_DATABASE", '{"url": "sqlite:////x.db"}')
    monkeypatch.setenv("STSYNC_NOTHING", "")
    text = config.read_text()
    config.write_text(text.replace("[database]", "[database]\nconnect_timeout_s = -1"))
    assert refused(config).startswith(f"{config}: database.connect_timeout_s: ")
    config.write_text(text)
    assert load_settings(config).database.url.get_secret_value() == "sqlite:////x.db"
    monkeypatch.setenv("STSYNC_TRUST", "{")
    assert refused(config).startswith("environment STSYNC_TRUST: ")


def test_an_error_that_is_found_later_names_the_place_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_settings(config)
    assert located("database.url: is wrong") == f"{config}: database.url: is wrong"
    monkeypatch.setenv("STSYNC_BROKER__URLS", "amqp://x")
    assert located("broker.urls[0]: is wrong") == "environment STSYNC_BROKER__URLS: broker.urls[0]: is wrong"
    assert located("node.toml: is away") == "node.toml: is away"
    assert located("database 127.0.0.1/x: is away") == "database 127.0.0.1/x: is away"


def test_a_list_in_the_environment_is_json_or_its_only_item(config: Path) -> None:
    one = of(config, STSYNC_BROKER__URLS="amqp://x:y@z", STSYNC_TRUST__AUTHORITIES="/other.pem")
    assert [url.get_secret_value() for url in one.broker.urls] == ["amqp://x:y@z"]
    assert one.trust.authorities == (Path("/other.pem"),)
    two = of(config, STSYNC_BROKER__URLS='["amqp://x:y@z", "amqps://x:y@z"]')
    assert len(two.broker.urls) == 2


def test_a_database_file_stands_in_the_node_s_home_where_its_path_is_relative(config: Path) -> None:
    def url(value: str) -> str:
        return of(config, STSYNC_DATABASE__URL=value).database.url.get_secret_value()

    assert load_settings(config).database.url.get_secret_value() == "sqlite:////opt/home/st.db"
    assert url("sqlite:////data/st.db") == "sqlite:////data/st.db"
    assert url("sqlite:///file:st.db?uri=true") == "sqlite:///file:st.db?uri=true"
    assert url("postgresql+psycopg:///st?host=/run") == "postgresql+psycopg:///st?host=/run"


def test_the_home_is_the_same_wherever_a_command_is_run(config: Path) -> None:
    config.write_text(FILE.format(home="home"))
    assert refused(config) == f"{config}: node.home: is to be an absolute path"
