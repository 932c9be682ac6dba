"""Other workers of the fleet, as this one asks them: over its own kind of connection, and with its own credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from yarl import URL

from streams.serve.auth import Tokens
from streams.serve.tls import Tls

__all__ = ["Peers"]

_ANSWER_S = 40.0
"""How long an answer may take; longer than anybody may have one waited for (`wait=`)."""


class Peers:
    """Asks workers by their addresses. To be made, used and closed on the event loop.

    Whoever asked this worker has been let in by it, and the others let in this worker: by the first token in the file
    that they share, and by its certificate.

    Args:
        tokens: Those of readers.
        tls: This worker's; None for plain HTTP.
    """

    def __init__(self, tokens: Tokens, tls: Tls | None) -> None:
        self._tokens = tokens
        self._scheme = "http" if tls is None else "https"
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_ANSWER_S),
            connector=aiohttp.TCPConnector(ssl=True if tls is None else tls.client),
        )

    def ask(
        self,
        method: str,
        address: str,
        path: str,
        *,
        params: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        within_s: float = _ANSWER_S,
    ) -> Any:
        """Ask one; for use in `async with`.

        Args:
            method: HTTP's.
            address: Which, as host:port.
            path: What, percent-encoded.
            params: The query; None where the path has it.
            within_s: How long to wait for the whole answer.
        """
        timeout = aiohttp.ClientTimeout(total=within_s)
        url = self._url(address, path) if params is None else self._url(address, path).with_query(params)
        return self._session.request(method, url, headers=self._tokens.header(), timeout=timeout)

    async def connect(self, address: str, path: str, *, max_bytes: int) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to one."""
        url = self._url(address, path)
        return await self._session.ws_connect(url, headers=self._tokens.header(), max_msg_size=max_bytes)

    async def close(self) -> None:
        """Let go of all connections."""
        await self._session.close()

    def _url(self, address: str, path: str) -> URL:
        return URL(f"{self._scheme}://{address}{path}", encoded=True)
