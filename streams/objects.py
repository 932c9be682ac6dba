"""Objects by name, wherever obstore can keep them: a shared volume, or a cloud's object storage.

The one module that knows obstore. What it raises is told apart here, once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streams.errors import ConfigError, RepositoryError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "Stored"]

_CHUNK_BYTES = 1 << 20
_PART_BYTES = 5 << 20
"""Of a file that is written in parts: the least that S3 takes."""
_PARTS_AT_ONCE = 2
_CLIENT = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "120s"}
_CLIENT_KEYS = frozenset(
    (
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_headers",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    )
)
"""Settings of the HTTP client; all others are the store's."""
_RETRIES = 2
_RETRY_S = 20.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of an object without reading it."""

    name: str
    size_bytes: int
    modified: datetime
    """By the store's clock."""


class Objects:
    """A place for objects. Any thread may call.

    Args:
        url: `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://account/container/prefix`.
        config: The store's own settings, as obstore names them (`endpoint`, `region`, `aws_server_side_encryption`, …),
            and those of its HTTP client (`allow_http`, `root_certificate`, …). Credentials come from the environment
            too, as the cloud's own tools read them.

    Raises:
        ConfigError: obstore is not installed, or there is no such store or setting.
    """

    def __init__(self, url: str, config: Mapping[str, Any] | None = None) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(
                f"Snapshots in {url} need obstore: `pip install 'refold[snapshots]'`, or do without a snapshot "
                "repository."
            ) from error
        self._obstore = obstore
        self.url = url
        given: dict[str, Any] = dict(config or {})
        if urlsplit(url).scheme == "file" and given:
            raise ConfigError(f"{url} is a directory, and takes no settings: {', '.join(given)}.")
        client = {key: given.pop(key) for key in list(given) if key in _CLIENT_KEYS}
        try:
            if urlsplit(url).scheme == "file":
                self._store: ObjectStore = from_url(url, mkdir=True)
            else:
                how: dict[str, Any] = {"config": given or None, "client_options": {**_CLIENT, **client}}
                how["retry_config"] = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}
                self._store = from_url(url, **how)
        except Exception as error:
            raise ConfigError(f"There is no keeping objects at {url}: {_said(error)}") from error

    def put(self, name: str, what: bytes | Path) -> None:
        """Write an object: bytes, or a file's. All of it is there, or what was there before.

        Raises:
            RepositoryError: It cannot be written.
        """
        with self._failing("write", name):
            self._obstore.put(self._store, name, what, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def get(self, name: str) -> bytes | None:
        """Read a small object; None where there is none.

        Raises:
            RepositoryError: It cannot be read.
        """
        with self._failing("read", name):
            try:
                return bytes(self._obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read an object piece by piece.

        Raises:
            FileNotFoundError: There is none.
            RepositoryError: It cannot be read to its end.
        """
        with self._failing("read", name, tells_absence=True):
            for chunk in self._obstore.get(self._store, name).stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def listed(self, prefix: str) -> list[Stored]:
        """Give all objects below a prefix, by name.

        Raises:
            RepositoryError: They cannot be listed.
        """
        with self._failing("list", prefix):
            found = [one for chunk in self._obstore.list(self._store, prefix) for one in chunk]
        return sorted(
            (Stored(one["path"], one["size"], one["last_modified"]) for one in found), key=lambda one: one.name
        )

    def folders(self, prefix: str) -> list[str]:
        """Give the names directly below a prefix that further ones are below.

        Raises:
            RepositoryError: They cannot be listed.
        """
        with self._failing("list", prefix):
            found = self._obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return sorted(one.rstrip("/").rpartition("/")[2] for one in found)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; one that there is not is as good as removed.

        Raises:
            RepositoryError: They cannot be removed.
        """
        for name in names:
            with self._failing("remove", name), contextlib.suppress(FileNotFoundError):
                self._obstore.delete(self._store, name)

    @contextlib.contextmanager
    def _failing(self, doing: str, name: str, *, tells_absence: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if tells_absence and isinstance(error, FileNotFoundError):
                raise
            raise RepositoryError(f"{self.url.rstrip('/')}/{name}: cannot {doing} it: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Give what an error says in its first line, with what the server said; below it is how that looks in Rust."""
    said = str(error)
    first = said.partition("\n")[0].partition(": <?xml")[0].strip()
    server = [found[1] for key in ("Code", "Message") if (found := re.search(f"<{key}>(.*?)</{key}>", said))]
    first = ": ".join([first, *server])
    return first if first.endswith(".") else f"{first}."
