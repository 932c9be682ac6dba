"""Reading a projection's models, from whichever generation is active, through switches and rollbacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from projections.contract import CqrsProjection
from streams.control.place import Place, active_place
from streams.control.registry import Registry
from streams.data.files import FILES
from streams.data.reader import ModelReader
from streams.data.stores import Kind
from streams.errors import StorageError

__all__ = ["ActiveModels"]

A = TypeVar("A")

_PATIENCE_S = 5.0
_RETRY_S = 0.02


class ActiveModels:
    """The models of the active generation, on the machine that has its state.

    A switch is seen within a moment: each call is answered by the old or by the new generation, wholly. Any thread may
    call; close it, or use it in `with`.

    Args:
        projection: Whose.
        registry: Which says what is active.
        state_dir: Where the state of its generations is.
        max_age_s: How old the view may be that an answer is given from.
        plain: Give models as plain JSON values: the active generation may be of another code than this process's.
        kind: What models are kept in that are not in files.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        registry: Registry,
        state_dir: str | Path,
        *,
        max_age_s: float = 0.5,
        plain: bool = False,
        kind: Kind = FILES,
    ) -> None:
        self._projection = projection
        self._plain = plain
        self._state_dir = Path(state_dir)
        self._kind = kind
        self._max_age_s = max_age_s
        self._guard = threading.Lock()
        self._reader: ModelReader | None = None
        self._of: tuple[str, int] | None = None
        self._seen_s = 0.0
        self._watch = registry.watch(projection.name)

    @property
    def generation(self) -> str:
        """The id of the generation that the next answer comes from, unless it is switched by then."""
        return self._place().generation

    def _place(self) -> Place:
        return active_place(self._watch.record, self._projection, self._state_dir, kind=self._kind)

    def get(self, model_id: str) -> Any | None:
        """Give a model, or None.

        Raises:
            StateNotFound: The active generation's state is not on this machine.
            ModelSplit, StorageError: See `ModelReader`.
        """
        return self._ask(lambda reader: reader.get(model_id))

    def get_many(self, *model_ids: str) -> list[Any | None]:
        """Give several models, all of one generation and as of one view; see `get`."""
        return self._ask(lambda reader: [reader.get(one) for one in model_ids])

    def _ask(self, question: Callable[[ModelReader], A]) -> A:
        """Ask what is active now."""
        deadline = time.monotonic() + _PATIENCE_S
        with self._guard:
            while True:
                try:
                    reader = self._look()
                    try:
                        return question(reader)
                    finally:
                        reader.rest()
                except StorageError:
                    # What was active a moment ago may be gone by the time that it is read; then the registry says more.
                    if time.monotonic() > deadline:
                        raise
                    self._let_go()
                    time.sleep(_RETRY_S)

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._of = None

    def _look(self) -> ModelReader:
        place = self._place()
        is_old = time.monotonic() - self._seen_s > self._max_age_s
        if self._reader is not None and self._of is not None and self._of[0] == place.generation and not is_old:
            return self._reader
        now = time.monotonic()
        build = place.store.current()
        of = (place.generation, 0 if build is None else build.manifest.build)
        if self._reader is not None and self._of == of:
            self._reader.catch_up()
        else:
            opened = place.store.reader(None if self._plain else self._projection)
            if self._reader is not None:
                self._reader.close()
            self._reader, self._of = opened, (place.generation, opened.build.manifest.build)
        self._seen_s = now
        return self._reader

    def close(self) -> None:
        """Let go of the files and of the registry."""
        with self._guard:
            self._watch.close()
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
