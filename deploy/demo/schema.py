"""The configuration tables of a file-transfer server (DOMAIN §6), the same on the three engines."""

from datetime import datetime

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql

metadata = MetaData()


def name(column: str = "name") -> "Column[str]":
    """The natural key: configuration refers to things by name."""
    return Column(column, String(80), primary_key=True)


def reference(column: str, target: str, *, gone: str = "CASCADE", key: bool = False, null: bool = False) -> "Column[str]":
    """A reference by name, which follows a renaming; `gone` is what happens when the target is deleted."""
    link = ForeignKey(target, ondelete=gone, onupdate="CASCADE")
    return Column(column, String(80), link, primary_key=key, nullable=null)


def moment(column: str, *, null: bool = True) -> "Column[datetime]":
    """A time in UTC with its microseconds."""
    return Column(column, DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"), nullable=null)


def flag(column: str) -> "Column[int]":
    """0 or 1, a number on every engine so that a filter reads the same."""
    return Column(column, SmallInteger, nullable=False, server_default="0")


business_unit = Table(
    "business_unit",
    metadata,
    name(),
    Column("base_folder", String(255), nullable=False),
    reference("parent", "business_unit.name", gone="NO ACTION", null=True),
)
administrative_role = Table("administrative_role", metadata, name(), Column("rights", JSON, nullable=False))
administrator = Table(
    "administrator",
    metadata,
    name("login_name"),
    reference("role", "administrative_role.name", gone="NO ACTION"),
    reference("parent", "administrator.login_name", gone="NO ACTION", null=True),
    Column("certificate_dn", String(255)),
    flag("locked"),
    moment("last_login"),
    Column("failed_auth_attempts", Integer, nullable=False, server_default="0"),
)
administrator_business_unit = Table(
    "administrator_business_unit",
    metadata,
    reference("administrator", "administrator.login_name", key=True),
    reference("business_unit", "business_unit.name", key=True),
)
login_restriction_policy = Table(
    "login_restriction_policy", metadata, name(), Column("type", String(20), nullable=False), flag("is_default")
)
login_restriction_rule = Table(
    "login_restriction_rule",
    metadata,
    reference("policy", "login_restriction_policy.name", key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("client_address", String(64), nullable=False),
    Column("expression", Text),
    flag("enabled"),
)
account = Table(
    "account",
    metadata,
    name(),
    Column("type", String(10), nullable=False),
    Column("uid", Integer, nullable=False),
    Column("gid", Integer, nullable=False),
    Column("home_folder", String(255), nullable=False),
    Column("home_folder_access", String(20), nullable=False),
    reference("business_unit", "business_unit.name", gone="NO ACTION", null=True),
    reference("login_restriction_policy", "login_restriction_policy.name", gone="SET NULL", null=True),
    flag("disabled"),
    Column("email", String(120)),
    Column("phone", String(40)),
    Column("notes", Text),
    Column("transfer_type", String(1), nullable=False),
    Column("additional_attributes", JSON),
    moment("created", null=False),
    moment("modified", null=False),
)
virtual_user = Table(
    "virtual_user",
    metadata,
    name("login_name"),
    reference("account", "account.name"),
    Column("password_digest", String(200), nullable=False),
    flag("force_password_change"),
    moment("last_login"),
    Column("failed_auth_attempts", Integer, nullable=False, server_default="0"),
    flag("locked"),
)
recent_password = Table(
    "recent_password",
    metadata,
    Column("id", Integer, primary_key=True),
    reference("login_name", "virtual_user.login_name"),
    Column("password_digest", String(200), nullable=False),
    moment("changed", null=False),
)
application_type = Table("application_type", metadata, name(), Column("title", String(120), nullable=False))
application = Table(
    "application",
    metadata,
    name(),
    reference("type", "application_type.name", gone="NO ACTION"),
    Column("notes", Text),
    Column("business_units", JSON),
)
subscription = Table(
    "subscription",
    metadata,
    Column("id", String(36), primary_key=True),
    reference("account", "account.name"),
    reference("application", "application.name"),
    Column("folder", String(255), nullable=False),
    Column("flow_attributes", JSON),
    UniqueConstraint("account", "application", "folder"),
)
transfer_profile = Table(
    "transfer_profile",
    metadata,
    reference("account", "account.name", key=True),
    Column("name", String(80), primary_key=True),
    Column("mode", String(10), nullable=False),
    Column("record_length", Integer),
    Column("settings", JSON),
)
site = Table(
    "site",
    metadata,
    Column("id", String(36), primary_key=True),
    reference("account", "account.name"),
    Column("name", String(80), nullable=False),
    Column("protocol", String(10), nullable=False),
    Column("host", String(255), nullable=False),
    Column("port", Integer, nullable=False),
    Column("user_name", String(80)),
    Column("password", LargeBinary),
    Column("client_certificate", String(36)),
    UniqueConstraint("account", "name"),
)
schedule = Table(
    "schedule",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("subscription", String(36), ForeignKey("subscription.id", ondelete="CASCADE"), nullable=False),
    Column("cron", String(60), nullable=False),
    moment("starts", null=False),
    moment("ends"),
)
route = Table(
    "route",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(120), nullable=False, unique=True),
    Column("type", String(10), nullable=False),
    Column("template", String(36), ForeignKey("route.id")),
    reference("account", "account.name", null=True),
)
route_step = Table(
    "route_step",
    metadata,
    Column("route", String(36), ForeignKey("route.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("type", String(40), nullable=False),
    Column("executes", String(36), ForeignKey("route.id")),
    Column("settings", JSON),
)
certificate = Table(
    "certificate",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("alias", String(120), nullable=False, unique=True),
    Column("type", String(10), nullable=False),
    Column("usage", String(10), nullable=False),
    reference("account", "account.name", null=True),
    Column("der", LargeBinary, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    moment("expires", null=False),
)
zone = Table("zone", metadata, name(), Column("address", String(120), nullable=False), flag("is_default"))
server = Table(
    "server",
    metadata,
    name(),
    reference("zone", "zone.name", gone="NO ACTION", null=True),
    Column("protocol", String(10), nullable=False),
    Column("port", Integer, nullable=False),
    Column("certificate_alias", String(120)),
    flag("enabled"),
)
user_class = Table(
    "user_class",
    metadata,
    name(),
    Column("position", Integer, nullable=False),
    Column("user_pattern", String(120), nullable=False),
    Column("address_pattern", String(120), nullable=False),
)
server_configuration = Table(
    "server_configuration",
    metadata,
    name(),
    Column("node", String(60), primary_key=True),
    Column("profile", String(40), primary_key=True),
    flag("is_local"),
    flag("encrypted"),
    flag("read_only"),
    Column("settings", JSON, nullable=False),
)
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True),
    moment("at", null=False),
    Column("administrator", String(80), nullable=False),
    Column("action", Text, nullable=False),
)
