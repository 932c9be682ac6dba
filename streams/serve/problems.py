"""What went wrong with a request, as RFC 9457 says it: `application/problem+json`."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

__all__ = ["Problem", "answer"]


class Problem(Exception):
    """A request that is answered by a problem.

    Args:
        status: HTTP's.
        kind: The problem's type: `urn:refold:` and this.
        detail: What, where, and what to do.
        retry_after_s: When to try again; None where that does not help.
        facts: Further members.
    """

    def __init__(self, status: int, kind: str, detail: str, *, retry_after_s: int | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.facts = facts


def answer(problem: Problem) -> web.Response:
    """Give the response."""
    body = {
        "type": f"urn:refold:{problem.kind}",
        "title": problem.kind.replace("-", " "),
        "status": problem.status,
        "detail": problem.detail,
        **problem.facts,
    }
    headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=orjson.dumps(body), status=problem.status, content_type="application/problem+json", headers=headers
    )
