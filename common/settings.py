"""All settings of a node, their defaults and units, validated before any socket opens (INTERFACE, Configuration)."""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from common.errors import Misconfigured
from common.overrides import CONFIG_VARIABLE, PREFIX, origin, overrides, unread

DEFAULT_PATH = Path("/etc/stsync/stsync.toml")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
_loaded: list[Path] = []  # what was read, for errors that are found later
Positive = Annotated[float, Field(gt=0, le=1e9)]
Patience = Annotated[float, Field(gt=0, le=3600)]  # for one connection, in seconds


def _listed(value: Any) -> Any:
    """A list in the environment: as JSON, or its only item as it is."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [value]


Listed = (NoDecode, BeforeValidator(_listed), Field(min_length=1))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RosterNode(_Section):
    """One server of the cluster."""

    name: Name
    admin_url: str = ""


class ClusterSettings(_Section):
    """The cluster and its roster: the same on every node; the first node is the initial primary."""

    name: Name
    mode: Literal["active", "passive", "passive_legacy", "disabled"] = "active"
    nodes: tuple[RosterNode, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise ValueError("two nodes of the roster have the same name")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The roster's node names, in order of promotion."""
        return tuple(node.name for node in self.nodes)


class NodeSettings(_Section):
    """This node: its name in the roster and its FILEDRIVEHOME."""

    name: Name
    home: Path

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        if not home.is_absolute():
            raise ValueError("is to be an absolute path")
        return home


class DatabaseSettings(_Section):
    """The node's own database, as an SQLAlchemy URL."""

    url: SecretStr
    connect_timeout_s: Patience = 5.0


class BrokerTls(_Section):
    """TLS to the broker: who may issue its certificate, and this node's client certificate where it wants one."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


class BrokerSettings(_Section):
    """RabbitMQ: addresses tried in turn, kind of queues, and who declares them."""

    urls: Annotated[tuple[SecretStr, ...], *Listed]
    queue_type: Literal["quorum", "classic"] = "quorum"
    declare: bool = True
    require_user_id: bool = True  # refuse reports whose publisher the broker has not vouched for; false with EXTERNAL logins
    tls: BrokerTls | None = None
    heartbeat_s: Annotated[int, Field(ge=5, le=65_535)] = 20  # as AMQP can say it
    blocked_timeout_s: Positive = 30.0
    connect_timeout_s: Patience = 5.0
    retry_min_s: Positive = 0.2
    retry_max_s: Positive = 10.0
    queue_max_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 62)] = 1 << 30
    prefetch: Annotated[int, Field(ge=1, le=10_000)] = 100
    window: Annotated[int, Field(ge=1)] = 200

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, url in enumerate(urls):
            if not url.get_secret_value().strip().lower().startswith(("amqp://", "amqps://")):
                raise ValueError(f"the address at place {number} does not begin with amqp:// or amqps://")
        return urls


class TrustSettings(_Section):
    """Keys and certificates; relative paths are relative to the settings file."""

    key: Path
    certificate: Path
    authorities: Annotated[tuple[Path, ...], *Listed]
    cluster_key: Path
    cluster_certificate: Path
    data_key_hours: Positive = 1.0
    clock_tolerance_s: Positive = 300.0  # by how much a control message may come late beyond its lifetime (common.freshness)


class RelaySettings(_Section):
    """How the outbox is drained: polling bounds where the database cannot wake, the least time from one drain to the next (what is
    written meanwhile travels together) and up to which it grows under a flood of changes, and the size of a batch's body."""

    poll_min_ms: Positive = 0.2
    poll_max_ms: Positive = 100.0
    gather_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    gather_max_ms: Annotated[float, Field(ge=0, le=60_000)] = 40.0
    batch_bytes: Annotated[int, Field(ge=1024, le=8 << 20)] = 448 * 1024
    page_rows: Annotated[int, Field(ge=1)] = 2_000


class JournalSettings(_Section):
    """Retention: what is older or beyond the size is pruned, and a node that still needs it must fully synchronize."""

    max_age_hours: Positive = 168.0
    max_bytes: Annotated[int, Field(ge=1 << 16)] = 2 << 30
    prune_every_s: Positive = 60.0


class IntervalSettings(_Section):
    """Rhythm of signed control messages, in seconds."""

    heartbeat_s: Positive = 1.0
    report_s: Positive = 2.0
    report_min_s: Positive = 0.25
    catch_up_retry_s: Positive = 2.0
    offline_after_s: Positive = 10.0
    capture_check_s: Positive = 30.0  # how often the service looks whether the triggers still stand
    stop_within_s: Positive = 30.0  # how long a service that is to stop waits for a database that says nothing


class ReplaySettings(_Section):
    """Bounds of a secondary's work in one database transaction and in memory."""

    statement_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    group_batches: Annotated[int, Field(ge=1)] = 200
    hold_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    max_change_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    retry_quarantine_s: Positive = 5.0


class SessionSettings(_Section):
    """Full synchronizations and verifications: how long one may take, after how long a silent other side counts as gone, and which
    the primary begins by itself: for a node that needs one (`rejoin`, after pauses that double), to look for drift, to repair it; to
    compare at once whom it finds as it starts, or whose equality is in doubt (`verify_at_once`)."""

    timeout_s: Positive = 3600.0
    silent_s: Positive = 30.0
    chunk_bytes: Annotated[int, Field(ge=1024, le=2 << 20)] = 448 * 1024
    rejoin: bool = True
    rejoin_pause_s: Positive = 15.0
    rejoin_longest_pause_s: Positive = 1800.0
    verify_every_s: Annotated[float, Field(gt=0)] = 3600.0  # inf: never by itself
    verify_at_once: bool = True
    repair_drift: bool = False


class ReadinessSettings(_Section):
    """When `stsync ready` says yes: how far a node may be behind, and whether a full synchronization must have been completed since
    its service last started, as the vendor's rule has it."""

    max_behind: Annotated[int, Field(ge=0)] = 100
    max_lag_s: Positive = 10.0
    strict: bool = False


class LogSettings(_Section):
    """What the log tells: its level, and its form (`auto`: pretty on a terminal, JSON elsewhere)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "pretty", "json"] = "auto"


class Settings(BaseSettings):
    """The whole of one node's settings; frozen, unknown keys are errors."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    cluster: ClusterSettings
    node: NodeSettings
    database: DatabaseSettings
    broker: BrokerSettings
    trust: TrustSettings
    relay: RelaySettings = RelaySettings()
    journal: JournalSettings = JournalSettings()
    intervals: IntervalSettings = IntervalSettings()
    replay: ReplaySettings = ReplaySettings()
    sessions: SessionSettings = SessionSettings()
    readiness: ReadinessSettings = ReadinessSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which arrives as the initial values."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @model_validator(mode="after")
    def _node_in_roster(self) -> Self:
        if self.node.name not in self.cluster.names:
            raise ValueError(
                f"node.name {self.node.name!r} is not in the roster cluster.nodes ({', '.join(self.cluster.names)})"
            )
        return self


def settings_path(option: Path | None) -> Path:
    """Where the settings file is: `--config`, else `$STSYNC_CONFIG`, else /etc/stsync/stsync.toml."""
    if option is not None:
        return option
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else DEFAULT_PATH


def load_settings(option: Path | None) -> Settings:
    """Read and check the node's settings.

    Raises Misconfigured naming the file and the key; values (which may be secrets) are never in the message.
    """
    path = settings_path(option)
    values = _read(path)
    _loaded.append(path)
    try:
        settings = Settings(**values)
    except ValidationError as exc:
        raise Misconfigured("; ".join(_explain(path, error) for error in exc.errors())) from exc
    except ValueError as exc:  # an environment override that is not JSON where a section is due
        named = ", ".join(unread()) or f"{PREFIX}*"
        raise Misconfigured(f"environment {named}: the value cannot be read; sections are given as JSON") from exc
    sections = [(name, name.upper().removeprefix(PREFIX).split("__")[0].lower()) for name in overrides()]
    if unknown := [name for name, section in sections if section not in Settings.model_fields]:
        raise Misconfigured(f"environment {', '.join(unknown)}: unknown key")
    base = path.parent.resolve()
    trust = settings.trust.model_copy(
        update={
            "key": base / settings.trust.key,
            "certificate": base / settings.trust.certificate,
            "authorities": tuple(base / one for one in settings.trust.authorities),
            "cluster_key": base / settings.trust.cluster_key,
            "cluster_certificate": base / settings.trust.cluster_certificate,
        }
    )
    url = SecretStr(_at_home(settings.database.url.get_secret_value(), settings.node.home))
    database = settings.database.model_copy(update={"url": url})
    return settings.model_copy(update={"trust": trust, "broker": _located(settings), "database": database})


def _at_home(url: str, home: Path) -> str:
    """The URL of a database that is a file, with a relative path in the node's home."""
    scheme, _, path = url.partition(":///")
    relative = scheme.partition("+")[0] == "sqlite" and path and not path.startswith(("/", ":", "?", "file:"))
    return f"{scheme}:///{home / path}" if relative else url


def _located(settings: Settings) -> BrokerSettings:
    """The broker's settings with paths relative to the node's home."""
    tls = settings.broker.tls
    if tls is None:
        return settings.broker
    paths = {
        name: settings.node.home / value for name in ("authorities", "certificate", "key") if (value := getattr(tls, name))
    }
    return settings.broker.model_copy(update={"tls": tls.model_copy(update=paths)})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise Misconfigured(f"{path}: no such file; name one with --config or $STSYNC_CONFIG") from exc
    except OSError as exc:
        raise Misconfigured(f"{path}: cannot be read: {exc.strerror}; correct the path or its rights") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise Misconfigured(f"{path}: not valid TOML: {exc}") from exc


def located(text: str) -> str:
    """A sentence about a setting, which begins with its key, with the place where that stands; any other as it is."""
    key, _, rest = text.partition(": ")
    section, _, name = key.partition("[")[0].partition(".")
    kind = Settings.model_fields[section].annotation if section in Settings.model_fields else None
    known: dict[str, Any] = getattr(kind, "model_fields", {})
    return f"{origin(key, _loaded[-1])}: {rest}" if _loaded and name.partition(".")[0] in known else text


_WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "missing",
    "too_short": "is empty",
    "tuple_type": "is to be a list",
    "list_type": "is to be a list",
    "model_type": "is to be a section",
    "dict_type": "is to be a section",
}


def _explain(path: Path, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    text = _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    return f"{origin(key, path)}: {text}" if key else f"{path}: {text}"
