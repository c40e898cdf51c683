"""Settings that the environment gives: which there are, and whether a key stands in one of them or in the file. Pure but for the
environment itself."""

import json
import os
from pathlib import Path

PREFIX = "STSYNC_"
CONFIG_VARIABLE = "STSYNC_CONFIG"  # where the file is, and no setting
_NESTED = ("CLUSTER__NODES", "BROKER__TLS")  # what is given as JSON besides whole sections


def overrides() -> list[str]:
    """The variables that are to override a setting; empty ones do not."""
    return [
        name
        for name, value in sorted(os.environ.items())
        if value and name.upper().startswith(PREFIX) and name.upper() != CONFIG_VARIABLE
    ]


def origin(key: str, path: Path) -> str:
    """A key, such as `broker.urls[0]`, with where its value stands: in the file, or in a variable of the environment."""
    parts = key.upper().replace("[", ".").replace("]", "").split(".")
    for count in range(len(parts), 0, -1):
        whole = PREFIX + "__".join(parts[:count])
        for name in overrides():
            beyond = name.upper().startswith(f"{whole}__") and count == len(parts)
            if beyond or (name.upper() == whole and _holds(os.environ[name], parts[count:])):
                return f"environment {name}: {key}"
    return f"{path}: {key}"


def unread() -> list[str]:
    """Those which are to be JSON, and are not."""
    sections = [name for name in overrides() if "__" not in name or name.upper().removeprefix(PREFIX) in _NESTED]
    return [name for name in sections if _parsed(os.environ[name]) is None]


def _holds(value: str, parts: list[str]) -> bool:
    """Whether a variable's value says anything of what is left of a key."""
    found = _parsed(value)
    if not parts or not isinstance(found, dict):
        return True
    return parts[0] in {str(name).upper() for name in found}


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
