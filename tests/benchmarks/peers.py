"""Python environments of the peers' own, each made when it is first needed.

Quix Streams pins an older confluent-kafka than refold needs, and what a peer needs must not hold the product back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["PACKAGES", "PeerUnavailable", "peers_python"]

_OURS = {"msgspec": "0.22.0", "orjson": "3.13.0"}
PACKAGES = {
    "quixstreams": {"quixstreams": "3.28.1", "rocksdict": "0.3.29", **_OURS},
    "bytewax": {"bytewax": "0.21.1", "confluent-kafka": "2.16.1", **_OURS},
    "pathway": {"pathway": "0.33.0", **_OURS},
}
"""By peer, what is installed for it."""
_PIP_TIMEOUT_S = 300.0


class PeerUnavailable(RuntimeError):
    """A peer's packages cannot be installed here."""


def peers_python(peer: str) -> str:
    """Give the interpreter of a peer's environment, making it if it is not there yet.

    Raises:
        PeerUnavailable: It cannot be made; what pip said last is in the message.
    """
    wanted = hashlib.sha256(f"{sys.version} {PACKAGES[peer]}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "refold"
    directory = cache / f"{peer}-{wanted}"
    python = directory / "bin" / "python"
    if python.exists():
        return str(python)
    cache.mkdir(parents=True, exist_ok=True)
    # Under another name first, so that it is whole or not there. Its interpreter can be moved.
    unfinished = directory.with_suffix(f".{os.getpid()}")
    try:
        venv.create(unfinished, with_pip=True)
        subprocess.run(
            [
                str(unfinished / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                *(f"{name}=={version}" for name, version in PACKAGES[peer].items()),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_S,
        )
        unfinished.rename(directory)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if python.exists():  # another process was faster
            return str(python)
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise PeerUnavailable(f"{peer} cannot be installed: {' '.join(last)}") from error
    return str(python)
