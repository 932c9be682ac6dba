"""`refold.toml`: settings, and projections by name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.errors import ConfigError

__all__ = ["NAME", "ConfigFile", "near"]

NAME = "refold.toml"
_PATHS = ("state_dir", "admin_tokens", "read_tokens")
"""Settings that are paths, and in a file relative to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What a file says; an empty one where there is none.

    Settings at the top hold for every projection, those in `[projections.NAME]` for that one and win.
    """

    path: Path | None = None
    top: Mapping[str, Any] = field(default_factory=dict)
    projections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def find(cls, given: str | Path | None = None) -> ConfigFile:
        """Read the file that was named, or else the first `refold.toml` from the current directory upwards.

        Raises:
            ConfigError: The file that was named is not there, or a file is not as it should be.
        """
        if given is not None:
            return cls.read(Path(given))
        here = Path.cwd()
        for directory in (here, *here.parents):
            if (directory / NAME).is_file():
                return cls.read(directory / NAME)
        return cls()

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read one file.

        Raises:
            ConfigError: It cannot be read, is no TOML, or `projections` is no table of tables.
        """
        path = path.absolute()
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from error
        projections = found.pop("projections", {})
        if not isinstance(projections, dict) or not all(isinstance(one, dict) for one in projections.values()):
            raise ConfigError(f"{path}: projections are tables, each [projections.NAME] with a class and a topic.")
        return cls(
            path=path,
            top=_beside(path, found),
            projections={name: _beside(path, one) for name, one in projections.items()},
        )

    @property
    def directory(self) -> Path | None:
        """Where the file is, and the modules of its projections may be."""
        return None if self.path is None else self.path.parent

    def place(self, projection: str | None, key: str) -> str:
        """Say where in the file a setting is, for a message."""
        section = f" [projections.{projection}]" if key in self.projections.get(projection or "", {}) else ""
        return f"{self.path}{section} {key}"

    def settings(self, projection: str | None) -> dict[str, Any]:
        """Give the settings that hold for a projection, or for none."""
        return {**self.top, **{key: value for key, value in self._section(projection).items() if key != "class"}}

    def class_of(self, projection: str) -> str | None:
        """Give the class of a projection that the file names; None for one that it does not.

        Raises:
            ConfigError: The file gives no class for it.
        """
        if projection not in self.projections:
            return None
        found = self._section(projection).get("class")
        if not isinstance(found, str):
            raise ConfigError(
                f'{self.path} [projections.{projection}] gives no class: write class = "module:Class", or the name of '
                "a shipped projection."
            )
        place, colon, name = found.rpartition(":")
        if colon and place.endswith(".py") and self.path is not None:
            return f"{self.path.parent / place}:{name}"
        return found

    def unknown(self, projection: str | None, known: Iterable[str]) -> list[str]:
        """Say which keys nobody reads, each with the nearest that is read."""
        known = list(known)
        wrong = [f"{self.path}: unknown key {key!r}{near(key, known)}" for key in self.top if key not in known]
        return wrong + [
            f"{self.path} [projections.{projection}]: unknown key {key!r}{near(key, [*known, 'class'])}"
            for key in self._section(projection)
            if key not in known and key != "class"
        ]

    def _section(self, projection: str | None) -> Mapping[str, Any]:
        return self.projections.get(projection, {}) if projection is not None else {}


def near(name: str, known: Iterable[str]) -> str:
    """Write the question which name was meant; "" where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _beside(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Take paths as relative to the file, wherever the command is run."""
    return {
        key: str(path.parent / value) if key in _PATHS and isinstance(value, str) else value
        for key, value in found.items()
    }
