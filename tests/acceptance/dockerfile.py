"""The Dockerfile, step by step, where there is no container engine: its paths are below a directory."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.kit import REPOSITORY, quiet_environment

__all__ = ["Image", "build"]

INSTALL_S = 600.0
OURS = ("src", "wheels", "opt/refold", "app", "var/lib/refold")
"""The paths that the Dockerfile makes: below the directory, and nowhere else."""
FROM_PACKAGES = re.compile(r"apt-get update && apt-get install --yes --no-install-recommends (\w+) && rm -rf \S+")


@dataclass
class Image:
    """What an image is, as far as a process can tell."""

    root: Path
    is_for_all: bool
    """Whether every user may run the interpreter that is here in the base image's place."""
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: tuple[int, int] = (0, 0)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    """Of the system, which nobody installs here."""

    def path(self, inside: str) -> Path:
        """Where something of the image is."""
        return self.root / inside.lstrip("/")

    def mapped(self, text: str) -> str:
        """A command or a value, with the image's paths as they are here."""
        return re.sub(rf"(?<![\w./-])/(?=(?:{'|'.join(OURS)})\b)", f"{self.root}/", text)

    def words(self, *arguments: str) -> list[str]:
        """How it is started, without the first process of the system's packages."""
        words = [*self.entrypoint, *(arguments or self.command)]
        assert words[:2] == ["tini", "--"]
        assert "tini" in self.packages
        return words[2:]


def interpreter() -> tuple[Path, bool]:
    """A Python, and whether every user may run it."""
    for name in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        path = Path(name).resolve()
        if not path.exists() or not all(one.stat().st_mode & stat.S_IXOTH for one in [path, *path.parents]):
            continue
        tried = subprocess.run(
            [path, "-c", "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"],
            capture_output=True,
            check=False,
        )
        if tried.returncode == 0:
            return path, True
    return Path(sys.executable), False


def build(root: Path) -> Image:
    """Do what the Dockerfile says, below a directory."""
    shims = root.with_name(f"{root.name}-base")
    shims.mkdir(mode=0o755)
    python, is_for_all = interpreter()
    (shims / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
    (shims / "python").chmod(0o755)
    root.mkdir(mode=0o755)
    base = {"PATH": f"{shims}:/usr/bin:/bin"}
    image = Image(root, is_for_all)
    for instruction, text in _instructions((REPOSITORY / "Dockerfile").read_text()):
        match instruction:
            case "ARG" | "EXPOSE" | "STOPSIGNAL":
                pass
            case "FROM":
                # What the next stage does not copy is not in it.
                before = root.with_name(f"{root.name}-build")
                if any(root.iterdir()):
                    root.rename(before)
                    root.mkdir(mode=0o755)
                image = Image(root, is_for_all)
                image.environment |= base
            case "WORKDIR":
                image.directory = text
                image.path(text).mkdir(parents=True, exist_ok=True)
            case "COPY" if text.startswith("--from=build "):
                _, source, target = text.split()
                image.path(target).parent.mkdir(parents=True, exist_ok=True)
                root.with_name(f"{root.name}-build").joinpath(source.lstrip("/")).rename(image.path(target))
            case "COPY":
                *sources, target = text.split()
                for source in sources:
                    _copy(REPOSITORY / source, image.path(image.directory) / target)
            case "RUN":
                packages = FROM_PACKAGES.fullmatch(text)
                if packages is not None:
                    image.packages.append(packages[1])
                else:
                    _run(image, text)
            case "ENV":
                for word in shlex.split(text):
                    name, _, value = word.partition("=")
                    image.environment[name] = image.mapped(value).replace("$PATH", image.environment["PATH"])
            case "USER":
                user, group = text.split(":")
                image.user = int(user), int(group)
            case "ENTRYPOINT":
                image.entrypoint = json.loads(text)
            case "CMD":
                image.command = json.loads(text)
            case _:
                raise AssertionError(f"what is {instruction} here?")
    return image


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, " ".join(rest.split())


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if target.is_dir() else target)


def _run(image: Image, text: str) -> None:
    if os.geteuid() != 0:
        text = re.sub(r" -[og] \d+", "", text)  # nobody else may give files away
    done = subprocess.run(
        ["/bin/sh", "-c", image.mapped(text)],
        cwd=image.path(image.directory),
        env={**quiet_environment(), **image.environment},
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    assert done.returncode == 0, f"RUN {text}\n{done.stdout}\n{done.stderr}"
