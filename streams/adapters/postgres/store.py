"""One generation's models in PostgreSQL, for programs that name it themselves."""

from __future__ import annotations

import os

from streams.adapters.postgres.stores import Postgres
from streams.data.generation import StateStore

__all__ = ["PostgresStore"]


class PostgresStore(StateStore):
    """Where a generation's read models are kept: a table of a PostgreSQL.

    Args:
        directory: This generation's own directory, for what its processes on this machine tell each other; its name is
            the generation's, and names the table.
        conninfo: A connection string of libpq's; what it leaves out, PGHOST, PGPASSWORD, PGSERVICE and their like say.
        schema: The schema that the table is in; made where it is missing.
    """

    def __init__(self, directory: str | os.PathLike[str], conninfo: str = "", *, schema: str = "refold") -> None:
        super().__init__(directory, Postgres(conninfo, schema))
