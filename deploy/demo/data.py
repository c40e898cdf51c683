"""Some thousand rows as a bank's file-transfer cluster has them; the same seed gives the same rows."""

import hashlib
import random
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

Row = dict[str, Any]
Rows = dict[str, list[Row]]

_START = datetime(2021, 3, 1, 8, 0, 0)  # noqa: DTZ001 - columns hold UTC without saying so
_UNITS = [
    "Payments",
    "Treasury",
    "Cards",
    "Custody",
    "Lending",
    "Trade-Finance",
    "Retail",
    "Private-Banking",
    "Compliance",
    "Markets",
]
_CITIES = ["Zürich", "São Paulo", "Kraków", "London", "東京", "Frankfurt", "Montréal", "Singapore"]
_TYPES = [
    "AccountFilePurge",
    "AdvancedRouting",
    "AuditLogMaintenance",
    "Basic",
    "HumanSystem",
    "LogEntryMaintenance",
    "MBFT",
    "SharedFolder",
    "SiteMailbox",
    "StandardRouter",
    "SynchronyTransfer",
    "TransferLogMaintenance",
]
_PROTOCOLS = {"ssh": 22, "ftp": 21, "http": 443, "pesit": 17617, "as2": 4080}


class Maker:
    """Makes the rows of every table; `accounts` sets the size."""

    def __init__(self, accounts: int = 1000, seed: int = 20261123) -> None:
        self._dice = random.Random(seed)
        self._names = [f"acct-{number:05d}" for number in range(accounts)]
        self._units: list[str] = []

    def rows(self) -> Rows:
        """All rows by table, parents before children."""
        made: Rows = {}
        made["business_unit"] = self._business_units()
        made |= self._administration()
        made |= self._policies()
        made["account"] = [self.account(one, self._dice.choice(self._units)) for one in self._names]
        made |= self._logins()
        made |= self._applications()
        made["site"] = [self.site(one, f"site-{n}") for one in self._names for n in range(self._dice.randint(0, 2))]
        made["transfer_profile"] = [self._profile(one) for one in self._some(300)]
        made["certificate"] = [self.certificate(one) for one in self._some(250)]
        made |= self._routing()
        made |= self._servers()
        made["audit_log"] = [self._audit(number) for number in range(200)]
        return made

    def account(self, name: str, unit: str | None) -> Row:
        """An account."""
        created = self._moment()
        number = 10_000 + self._dice.randrange(50_000)
        return {
            "name": name,
            "type": self._dice.choice(["user", "user", "user", "service", "template"]),
            "uid": number,
            "gid": number,
            "home_folder": f"/data/home/{name}",
            "home_folder_access": self._dice.choice(["PRIVATE", "PUBLIC", "BUSINESS_UNIT"]),
            "business_unit": unit,
            "login_restriction_policy": self._dice.choice([None, None, "Partners", "Internal"]),
            "disabled": int(self._dice.random() < 0.05),
            "email": f"{name}@bank.example",
            "phone": self._dice.choice([None, "", "+41 44 555 01 23"]),
            "notes": self._dice.choice([None, "", f'Partner in {self._dice.choice(_CITIES)}; it\'s "urgent"\nsee file']),
            "transfer_type": self._dice.choice("NIE"),
            "additional_attributes": {"city": self._dice.choice(_CITIES), "limit": self._dice.randrange(10**12)},
            "created": created,
            "modified": created + timedelta(microseconds=self._dice.randrange(10**13)),
        }

    def login(self, name: str, account: str) -> Row:
        """A virtual user."""
        return {
            "login_name": name,
            "account": account,
            "password_digest": self._digest(name),
            "force_password_change": int(self._dice.random() < 0.1),
            "last_login": self._dice.choice([None, self._moment()]),
            "failed_auth_attempts": self._dice.randrange(3),
            "locked": 0,
        }

    def site(self, account: str, name: str) -> Row:
        """A site."""
        protocol = self._dice.choice(sorted(_PROTOCOLS))
        return {
            "id": self._id(),
            "account": account,
            "name": name,
            "protocol": protocol,
            "host": f"{account}.partner.example",
            "port": _PROTOCOLS[protocol],
            "user_name": account,
            "password": self._dice.randbytes(48),
            "client_certificate": None,
        }

    def certificate(self, account: str | None) -> Row:
        """A certificate; its bytes are of the right length only."""
        der = b"\x30\x82" + self._dice.randbytes(self._dice.randint(700, 1400))
        identity = self._id()
        return {
            "id": identity,
            "alias": f"{account or 'node'}-{identity[:8]}",
            "type": self._dice.choice(["x509", "x509", "pgp", "ssh"]),
            "usage": self._dice.choice(["login", "trusted", "partner", "local", "private"]),
            "account": account,
            "der": der,
            "fingerprint": hashlib.sha256(der).hexdigest(),
            "expires": self._moment() + timedelta(days=2000),
        }

    def _business_units(self) -> list[Row]:
        rows: list[Row] = []
        for unit in _UNITS:
            rows.append({"name": unit, "base_folder": f"/data/{unit}", "parent": None})
            rows += [
                {"name": f"{unit} {city}", "base_folder": f"/data/{unit}/{city}", "parent": unit}
                for city in self._dice.sample(_CITIES, 2)
            ]
        self._units = [row["name"] for row in rows]
        return rows

    def _administration(self) -> Rows:
        roles = ["Master Administrator", "Delegated Administrator", "Auditor", "Account Manager", "Setup"]
        rights = [{"name": one, "rights": {"accounts": "rw", "reports": one == "Auditor"}} for one in roles]
        people = [f"admin{number:02d}" for number in range(40)]
        admins = [
            {
                "login_name": one,
                "role": self._dice.choice(roles),
                "parent": None if number < 5 else people[number // 5],
                "certificate_dn": f"CN={one},O=Bank,C=CH",
                "locked": 0,
                "last_login": self._moment(),
                "failed_auth_attempts": self._dice.randrange(2),
            }
            for number, one in enumerate(people)
        ]
        pairs = [
            {"administrator": one, "business_unit": unit} for one in people for unit in self._dice.sample(self._units, 2)
        ]
        return {"administrative_role": rights, "administrator": admins, "administrator_business_unit": pairs}

    def _policies(self) -> Rows:
        names = ["Partners", "Internal", "Nobody"]
        policies = [{"name": one, "type": "ALLOW_THEN_DENY", "is_default": int(one == "Internal")} for one in names]
        rules = [
            {
                "policy": one,
                "position": number,
                "client_address": f"10.{number}.*",
                "expression": f"${{session.user}} like '%{number}'",
                "enabled": number % 2,
            }
            for one in names
            for number in range(6)
        ]
        return {"login_restriction_policy": policies, "login_restriction_rule": rules}

    def _logins(self) -> Rows:
        logins = [self.login(f"{one}.{n}", one) for one in self._names for n in range(self._dice.randint(1, 2))]
        recent = [
            {
                "login_name": login["login_name"],
                "password_digest": self._digest(f"{login['login_name']}{number}"),
                "changed": self._moment(),
            }
            for login in logins
            for number in range(self._dice.randint(0, 2))
        ]
        return {"virtual_user": logins, "recent_password": recent}

    def _applications(self) -> Rows:
        types = [{"name": one, "title": f"{one} application"} for one in _TYPES]
        applications = [
            {"name": f"{kind}-{n}", "type": kind, "notes": None, "business_units": self._dice.sample(self._units, 3)}
            for kind in _TYPES
            for n in range(4)
        ]
        subscriptions = [
            {
                "id": self._id(),
                "account": one,
                "application": self._dice.choice(applications)["name"],
                "folder": f"/inbox/{number}",
                "flow_attributes": {"priority": self._dice.randrange(10), "class": "C"},
            }
            for one in self._names
            for number in range(self._dice.randint(0, 2))
        ]
        schedules = [
            {"id": self._id(), "subscription": one["id"], "cron": "0 */2 * * *", "starts": self._moment(), "ends": None}
            for one in subscriptions[::4]
        ]
        return {
            "application_type": types,
            "application": applications,
            "subscription": subscriptions,
            "schedule": schedules,
        }

    def _routing(self) -> Rows:
        templates = [self._route(f"template {n}", "TEMPLATE", None, None) for n in range(5)]
        simple = [self._route(f"simple {n}", "SIMPLE", None, None) for n in range(60)]
        whole = [
            self._route(f"route of {one}", "COMPOSITE", self._dice.choice(templates)["id"], one) for one in self._some(120)
        ]
        steps = [
            {
                "route": route["id"],
                "position": number,
                "type": self._dice.choice(["Compress", "PgpEncrypt", "SendToPartner", "Rename"]),
                "executes": self._dice.choice(simple)["id"] if route["type"] == "COMPOSITE" else None,
                "settings": {"pattern": "*.csv", "retries": self._dice.randrange(9)},
            }
            for route in simple + whole
            for number in range(self._dice.randint(1, 4))
        ]
        return {"route": templates + simple + whole, "route_step": steps}

    def _servers(self) -> Rows:
        zones = [
            {"name": one, "address": f"{one}.bank.example", "is_default": int(one == "private")}
            for one in ("private", "dmz")
        ]
        servers = [
            {
                "name": f"{kind}-listener",
                "zone": "dmz",
                "protocol": kind,
                "port": 8000 + port % 1000,
                "certificate_alias": "admind",
                "enabled": 1,
            }
            for kind, port in _PROTOCOLS.items()
        ]
        classes = [
            {"name": f"Class{n}", "position": n, "user_pattern": "*", "address_pattern": f"192.0.2.{n}"} for n in range(8)
        ]
        parameters = [self.parameter(f"Parameter.{n:03d}", n % 10 == 0) for n in range(300)]
        return {"zone": zones, "server": servers, "user_class": classes, "server_configuration": parameters}

    def parameter(self, name: str, local: bool) -> Row:
        """A server configuration parameter; its values are a list."""
        return {
            "name": name,
            "node": "",
            "profile": "default",
            "is_local": int(local),
            "encrypted": 0,
            "read_only": 0,
            "settings": [f"value {self._dice.randrange(1000)}", self._dice.choice(_CITIES)],
        }

    def _route(self, name: str, kind: str, template: str | None, account: str | None) -> Row:
        return {"id": self._id(), "name": name, "type": kind, "template": template, "account": account}

    def _profile(self, account: str) -> Row:
        settings = {"encoding": "EBCDIC", "translate": True}
        return {"account": account, "name": "default", "mode": "binary", "record_length": 512, "settings": settings}

    def _audit(self, number: int) -> Row:
        return {"at": self._moment(), "administrator": "admin01", "action": f"changed account {number}"}

    def _some(self, count: int) -> Iterator[str]:
        return iter(self._dice.sample(self._names, min(count, len(self._names))))

    def _moment(self) -> datetime:
        return _START + timedelta(microseconds=self._dice.randrange(10**14))

    def _id(self) -> str:
        return str(uuid.UUID(int=self._dice.getrandbits(128), version=4))

    def _digest(self, text: str) -> str:
        return "{SSHA256}" + hashlib.sha256(text.encode()).hexdigest()
