"""Settings from flags, the environment and a file: read together, and all that is wrong said at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from streams.config import FoldSettings, KafkaSettings, SourceSettings, StateSettings, WorkerSettings
from streams.configfile import ConfigFile, near
from streams.errors import ConfigError

__all__ = ["ALL", "known_variables", "load", "resolve_settings", "unknown_variables", "variable"]

S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S], **arguments: Any) -> S:
    """Read one settings class from arguments, then the environment, then its defaults.

    Args:
        settings: The class.
        arguments: Values that win over the environment; None means "not given".

    Raises:
        ConfigError: Everything that is wrong, in one message.
    """
    (found,) = resolve_settings([settings], arguments=arguments)
    assert isinstance(found, settings)
    return found


def resolve_settings(
    kinds: Iterable[type[BaseSettings]],
    *,
    flags: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    file: ConfigFile | None = None,
    projection: str | None = None,
    required: Iterable[str] = (),
) -> list[BaseSettings]:
    """Read several settings classes from flags, then the environment, then a file, then their defaults.

    Args:
        kinds: The classes.
        flags: Values from the command line, by setting; None means "not given".
        arguments: The same for a program's own; only in messages are they named otherwise.
        file: The configuration file.
        projection: Whose section of the file holds.
        required: Settings without which there is no going on.

    Returns:
        One object of each class, in order.

    Raises:
        ConfigError: Everything that is wrong, wherever it comes from, in one message.
    """
    kinds, file = list(kinds), file or ConfigFile()
    given = {key: value for key, value in {**(arguments or {}), **(flags or {})}.items() if value is not None}
    in_file = file.settings(projection)
    if ("on_error" in given or variable("on_error") in os.environ) and isinstance(in_file.get("recovery"), dict):
        # One word for all wins over what the file says of some.
        in_file["recovery"] = {
            key: value for key, value in in_file["recovery"].items() if key not in ("live", "rebuild")
        }
    wrong = file.unknown(projection, [key for kind in ALL for key in kind.model_fields])
    found: list[BaseSettings] = []

    def source(key: str) -> str:
        if key in given:
            return f"--{key.replace('_', '-')}" if flags is not None and key in flags else key
        if variable(key) in os.environ:
            return variable(key)
        return file.place(projection, key) if key in in_file else key

    for kind in kinds:
        values = {key: given[key] for key in kind.model_fields if key in given}
        values |= {
            key: in_file[key]
            for key in kind.model_fields
            if key in in_file and key not in given and variable(key) not in os.environ
        }
        if "kafka" in kind.model_fields and "kafka" in in_file and "kafka" not in values:
            values |= _both(in_file["kafka"])
        try:
            found.append(kind(**values))
        except SettingsError:
            wrong.append("REFOLD_KAFKA: it is not a JSON object")
        except ValidationError as error:
            wrong += [_one_error(source(str(item["loc"][0])), item) for item in error.errors(include_url=False)]
    known = {key for kind in kinds for key in kind.model_fields}
    # None of the program's own arguments may vanish; a flag is checked by whoever parses it.
    wrong += [f"{key}: there is no such setting{near(key, known)}" for key in arguments or {} if key not in known]
    for key in required:
        if not wrong and next((getattr(one, key) for one in found if key in type(one).model_fields), None) is None:
            where = f", or {key} in {file.path}" if file.path else ", or in refold.toml"
            wrong.append(f"{key}: it is needed. Give --{key.replace('_', '-')}, {variable(key)}{where}")
    if wrong:
        raise ConfigError(
            "Settings are wrong: " + wrong[0] if len(wrong) == 1 else "\n  ".join(["Settings are wrong:", *wrong])
        )
    return found


def _both(in_file: Any) -> dict[str, Any]:
    """Give a file's client settings with those of the environment over them; nothing where either is no object.

    Secrets are in the environment, and the rest is in a file.
    """
    try:
        in_environment = json.loads(os.environ[variable("kafka")])
    except ValueError:
        return {}
    if not isinstance(in_environment, dict) or not isinstance(in_file, Mapping):
        return {}
    return {"kafka": {**in_file, **in_environment}}


_SECRET = {"kafka", "snapshot_repository_config"}
"""Client settings may be secrets: their values are never shown."""


def _one_error(source: str, item: Any) -> str:
    path = ".".join(map(str, item["loc"][1:]))
    shown = "" if _SECRET & set(item["loc"]) else f" (got {item['input']!r})"
    said = item["msg"].removeprefix("Value error, ")
    return f"{source}{'.' if path else ''}{path}: {said[:1].lower()}{said[1:]}{shown}"


def variable(key: str) -> str:
    """Give the environment variable of a setting."""
    return f"REFOLD_{key.upper()}"


ALL: tuple[type[BaseSettings], ...] = (KafkaSettings, FoldSettings, StateSettings, SourceSettings, WorkerSettings)
_OTHER_VARIABLES = (
    "REFOLD_BROKER_DATA_DIR",
    "REFOLD_BROKER_PORT",
    "REFOLD_CONFIG",
    "REFOLD_LOG",
    "REFOLD_LOG_FORMAT",
    "REFOLD_LOG_LEVEL",
    "REFOLD_MAVEN_REPOSITORY",
)
_SERVICE_LINK = re.compile(r"REFOLD_(\w+_)?(SERVICE_(HOST|PORT)|PORT)(_\w+)?")
"""What Kubernetes sets for a service that is called refold."""


def known_variables() -> set[str]:
    """Name every variable of the environment that refold reads."""
    return {*_OTHER_VARIABLES, *(variable(key) for kind in ALL for key in kind.model_fields)}


def unknown_variables() -> list[str]:
    """Name the variables of the environment that look like ours and that nothing reads, each with the nearest."""
    known = known_variables()
    return [
        f"{name}{near(name, known)}"
        for name in sorted(os.environ)
        if name.startswith("REFOLD_") and name not in known and not _SERVICE_LINK.fullmatch(name)
    ]
