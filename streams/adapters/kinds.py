"""What models are kept in, by the settings."""

from __future__ import annotations

from streams.config import StateSettings
from streams.data.files import FILES
from streams.data.stores import Kind
from streams.errors import ConfigError

__all__ = ["kind_of"]


def kind_of(settings: StateSettings) -> Kind:
    """Give what the models of new generations are kept in.

    Raises:
        ConfigError: PostgreSQL, and its client is not installed.
    """
    if settings.store == "files":
        return FILES
    try:
        from streams.adapters.postgres.stores import Postgres
    except ImportError as error:
        raise ConfigError(f"store = postgres needs psycopg: pip install 'refold[postgres]'. ({error})") from error
    return Postgres(settings.dsn.get_secret_value(), settings.pg_schema, settings.pg_reader)
