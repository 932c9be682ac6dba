"""Who may ask what: by bearer tokens, from files that are read again when they change, or by certificates."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Collection
from pathlib import Path

from aiohttp import web

from streams.errors import ConfigError
from streams.log import get_logger
from streams.serve.problems import Problem
from streams.serve.tls import certified

__all__ = ["Door", "Tokens"]

log = get_logger(__name__)


class Door:
    """Lets those in who show what is asked for.

    Args:
        tokens: Whose bearers may come in.
        names: Those names in a certificate by which one may come in too; None: any certificate will do.
        is_open: Everybody may, who shows nothing at all.
        also: Whose bearers may come in too, and are not asked for.
    """

    def __init__(
        self, tokens: Tokens, *, names: Collection[str] | None, is_open: bool, also: Tokens | None = None
    ) -> None:
        self._tokens = tokens
        self._also = also
        self._names = names
        self._is_open = is_open

    def check(self, request: web.Request) -> str:
        """Give the name of the one who asks; "anonymous" where that does not matter.

        Raises:
            Problem: Nothing that lets him in, or something wrong.
        """
        shown = certified(request)
        known = shown if self._names is None else shown & frozenset(self._names)
        if known:
            return min(known)
        if self._also is not None and (found := self._also.bearer(request)):
            return found
        if self._tokens.are_needed:
            return self._tokens.check(request)
        if self._is_open:
            return "anonymous"
        if shown:
            raise Problem(403, "forbidden", f"This certificate ({', '.join(sorted(shown))}) is not enough here.")
        raise Problem(401, "unauthorized", "A client certificate is needed.")


class Tokens:
    """The tokens in a file, one a line, each with an optional name before it: `ann s3cret`.

    Args:
        path: The file; None: nobody is asked for one.

    Raises:
        ConfigError: It cannot be read, or holds none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._stamp = (0, 0)
        self._tokens: tuple[tuple[str, bytes], ...] = ()
        if path is not None:
            self._read(path)

    @property
    def are_needed(self) -> bool:
        """Whether a request needs one."""
        return self._path is not None

    def check(self, request: web.Request) -> str:
        """Give the name of whose token a request shows.

        Every token is compared, each in constant time.

        Raises:
            Problem: No token, or a wrong one.
        """
        found = self.bearer(request)
        if found is None:
            raise Problem(401, "unauthorized", "A bearer token is needed: Authorization: Bearer TOKEN.")
        if not found:
            raise Problem(403, "forbidden", "This token is not known here.")
        return found

    def bearer(self, request: web.Request) -> str | None:
        """Give the name of whose token a request shows; "" where it is not known here, None where it shows none."""
        if self._path is not None:
            self._read_again(self._path)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return None
        found = ""
        for name, token in self._tokens:
            if hmac.compare_digest(token, given.strip().encode()):
                found = name
        return found

    def header(self) -> dict[str, str]:
        """Give what this worker shows to others of its fleet, whose tokens are the same."""
        return {"Authorization": f"Bearer {self._tokens[0][1].decode()}"} if self._tokens else {}

    def _read_again(self, path: Path) -> None:
        """Read the file where it has changed; one that cannot be read changes nothing."""
        try:
            now = path.stat()
            if (now.st_mtime_ns, now.st_ino) != self._stamp:
                with self._guard:
                    self._read(path)
        except (OSError, ConfigError) as error:
            log.warning("tokens.not_read", path=str(path), why=str(error))

    def _read(self, path: Path) -> None:
        try:
            found = path.stat()
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The tokens in {path} cannot be read: {error}.") from error
        tokens = []
        for number, line in enumerate(lines, 1):
            name, _, token = line.strip().rpartition(" ")
            if token and not token.startswith("#"):
                tokens.append((name.strip() or f"token {number}", token.encode()))
        if not tokens:
            raise ConfigError(f"{path} holds no token: write one on each line, with a name before it (`ann s3cret`).")
        self._tokens, self._stamp = tuple(tokens), (found.st_mtime_ns, found.st_ino)
