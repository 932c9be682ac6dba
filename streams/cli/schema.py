"""`refold schema`: what `--json` prints, as JSON Schema."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from streams.cli.output import shown
from streams.errors import ConfigError

__all__ = ["schema"]


def schema(
    kind: Annotated[str | None, Parameter(help="A name, such as lag/1; by default, all are named.")] = None, /
) -> None:
    """Print the JSON Schema of what a command prints with --json, by the name that is in its "schema".

    Example: refold schema lag/1

    Args:
        kind: Which one.
    """
    from streams.cli.schemas import KINDS, schema_of

    if kind is None:
        print("\n".join(KINDS))  # noqa: T201
        return
    if kind.removeprefix("refold.") not in KINDS:
        raise ConfigError(f"There is no schema {kind!r}: there are {', '.join(KINDS)}.")
    print(shown(schema_of(kind.removeprefix("refold.")), pretty=True))  # noqa: T201
