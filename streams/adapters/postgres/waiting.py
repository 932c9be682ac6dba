"""A connection that waits for a server that is busy, and not for one that is frozen."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

from streams.log import get_logger

__all__ = ["CONNECT_S", "Connection"]

log = get_logger(__name__)

_Result = TypeVar("_Result")

CONNECT_S = 10
"""How long a server may take to let one in."""
_PATIENCE_S = 5.0
"""So long nobody is asked what became of a statement; then after twice the time, and so on."""
_LONGEST_S = 60.0


class Unanswered(psycopg.OperationalError):
    """Nobody has answered for longer than anybody waits."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose statements take as long as they take, while their server answers others.

    Neither TCP nor libpq notices a server that is stopped, or whose machine hangs: its kernel goes on to acknowledge
    what is sent. A statement that is not answered for a while may as well be a long one. So another connection is asked
    for: where that is not answered either, this one is closed, and the statement fails as with a lost connection. What
    becomes of its transaction then, the server decides when it wakes.
    """

    conninfo = ""
    """How others connect to the same server; "" where nobody is to be asked, and patience is all."""

    def wait(self, gen: PQGen[_Result], *args: Any, **kwargs: Any) -> _Result:
        """See psycopg's own, which does all waiting."""
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, gen: PQGen[_Result]) -> Generator[Any, Any, _Result]:
        """Go through the steps of a statement, and look after the server between them."""
        try:
            wants = next(gen)
            heard, patience_s = time.monotonic(), _PATIENCE_S
            while True:
                ready = yield wants
                if ready:
                    heard, patience_s = time.monotonic(), _PATIENCE_S
                elif (silent_s := time.monotonic() - heard) >= patience_s:
                    self._look_after(silent_s)
                    patience_s = silent_s + min(silent_s, _LONGEST_S)
                wants = gen.send(ready)
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _look_after(self, silent_s: float) -> None:
        if self.conninfo and _answers(self.conninfo):
            log.info("database.busy", silent_s=round(silent_s, 1))
            return
        self.close()
        also = ", nor did it let another connection in" if self.conninfo else ""
        raise Unanswered(f"the server has not answered for {silent_s:.0f} s{also}")


def _answers(conninfo: str) -> bool:
    """Say whether a server answers, be it with a refusal."""
    try:
        with Connection.connect(conninfo, autocommit=True, connect_timeout=CONNECT_S) as connection:
            connection.execute("SELECT 1")
    except (psycopg.errors.ConnectionTimeout, Unanswered):
        return False
    except psycopg.Error:
        return True
    return True
