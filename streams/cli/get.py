"""`refold get`: one read model, from the state on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from projections.registry import resolve
from streams.data.checkpoint import generation_id
from streams.data.generation import RocksStore
from streams.errors import ModelNotFound

__all__ = ["get"]


def get(
    projection: str,
    model_id: str,
    /,
    *,
    state_dir: Annotated[Path, Parameter(env_var="REFOLD_STATE_DIR")] = Path(".refold"),
) -> None:
    """Print one read model as JSON, as last committed, also while it is being folded.

    Example: refold get aircraft-log N14228

    Args:
        projection: A shipped projection's name, or module:Class.
        model_id: The model's id.
        state_dir: Where read models are kept.
    """
    found = resolve(projection)
    store = RocksStore(state_dir / generation_id(found.name, found.version))
    with store.reader(found) as reader:
        raw = reader.get_raw(model_id)
        if raw is None:
            raise ModelNotFound(
                f"{found.name} has no model {model_id!r} among its {reader.count():,} models in {store.directory}.",
                projection=found.name,
            )
    print(raw.decode())  # noqa: T201
