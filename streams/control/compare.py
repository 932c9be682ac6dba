"""Two generations' models, compared: counts, digests of runs of models, and what differs in those that differ."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import orjson

from projections.contract import CqrsProjection
from streams.control.record import Summary
from streams.control.runs import Models, NoModels, StoredModels
from streams.data.failures import users_frames
from streams.data.stores import StoreReader
from streams.diff import ABSENT, Change, changes
from streams.errors import ProjectionError
from streams.prepared import prepared

__all__ = ["Comparison", "Difference", "Report", "compare"]

_FIELDS = 1000
"""Paths that are counted; those beyond are counted as one, for there are models whose keys are data."""
_OTHERS = "…"
_SHOWN_FIELDS = 20


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One model that differs."""

    id: str
    partition: int
    kind: Literal["changed", "added", "removed"]
    changes: list[Change]
    """What was there `before` in the old generation, and is `after` in the new one."""
    expected: bool | None = None
    """What the projection's `validate` says of it; None where it was not asked."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found."""

    format: int = 2
    before: str
    """The generation's id, as the next one."""
    after: str
    positions: dict[int, int]
    """By partition, of which position both were."""
    summary: Summary
    differences: list[Difference]
    """The first ones of each kind, by partition and id."""


prepared(Report)


@dataclass
class Comparison:
    """Adds up what differs, partition by partition, in bounded memory.

    Args:
        shown: How many models of each kind are shown.
        validate: The projection whose `validate` is asked of each; None: none is.
    """

    shown: int = 20
    validate: CqrsProjection[Any] | None = None
    models_before: int = 0
    models_after: int = 0
    unexpected: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def add(
        self,
        partition: int,
        before: Models,
        after: Models,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """Compare one partition.

        1. Go through the old models, in the order of their ids, and make a digest of each run of them.
        2. Go through the new ones, cut at the same ids.
        3. Runs of equal digests are equal. Of the others, go through both again, side by side.

        Args:
            partition: Which.
            before: The old generation's.
            after: The new generation's, of the same position.
            check_cancelled: Raises where it is not wanted any more; called now and then.

        Raises:
            ProjectionError: `validate` raised.
            StorageError: A store cannot be read.
        """
        # Steps 1 and 2
        old = list(before.runs(None, check_cancelled))
        new = list(after.runs([run.first for run in old], check_cancelled))
        self.models_before += sum(run.models for run in old)
        self.models_after += sum(run.models for run in new)
        # Step 3
        ends = [run.first for run in old[1:]] + [None]
        for was, now, end in zip(old, new, ends, strict=True):
            if was.digest != now.digest:
                check_cancelled()
                for model_id, one, other in _joined(before, after, was.first, end):
                    self._differs(partition, model_id, one, other)

    def _differs(self, partition: int, model_id: bytes, before: bytes | None, after: bytes | None) -> None:
        kind: Literal["changed", "added", "removed"] = (
            "added" if before is None else "removed" if after is None else "changed"
        )
        self.kinds[kind] += 1
        old = ABSENT if before is None else orjson.loads(before)
        new = ABSENT if after is None else orjson.loads(after)
        found = changes(old, new)
        if kind == "changed":
            for path in {_general(one.path) for one in found}:
                self.fields[path if path in self.fields or len(self.fields) < _FIELDS else _OTHERS] += 1
        expected = None if self.validate is None else self._expects(model_id, old, new)
        if expected is False:
            self.unexpected += 1
        if self.kinds[kind] <= self.shown or (expected is False and self.unexpected <= self.shown):
            self.differences.append(
                Difference(
                    id=model_id.decode(errors="replace"),
                    partition=partition,
                    kind=kind,
                    changes=found,
                    expected=expected,
                )
            )

    def _expects(self, model_id: bytes, old: Any, new: Any) -> bool:
        assert self.validate is not None
        try:
            return bool(self.validate.validate(None if old is ABSENT else old, None if new is ABSENT else new))
        except Exception as error:
            failed = ProjectionError(
                f"{type(self.validate).__qualname__}.validate raised {type(error).__name__}: {error}, at model "
                f"{model_id.decode(errors='replace')!r}. Readers stay with the old generation; correct it and compare "
                f"again (`refold verify {self.validate.name}`).",
                projection=self.validate.name,
            )
            failed.user_traceback = users_frames(error)
            raise failed from error

    def summary(self, not_compared: Mapping[int, str]) -> Summary:
        """Give it in numbers.

        Args:
            not_compared: By partition, why it could not be.
        """
        return Summary(
            models_before=self.models_before,
            models_after=self.models_after,
            changed=self.kinds["changed"],
            added=self.kinds["added"],
            removed=self.kinds["removed"],
            fields=dict(self.fields.most_common(_SHOWN_FIELDS)),
            not_compared=dict(not_compared),
            unexpected=self.unexpected,
            seconds=round(time.monotonic() - self._began, 3),
            at=datetime.now(UTC),
        )


def compare(before: StoreReader | None, after: StoreReader | None, partition: int = 0, **options: Any) -> Comparison:
    """Compare one partition alone; see `Comparison`."""
    comparison = Comparison(**options)
    was, now = (NoModels() if one is None else StoredModels(one) for one in (before, after))
    comparison.add(partition, was, now)
    return comparison


def _joined(
    before: Models, after: Models, first: bytes, end: bytes | None
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield (id, old, new) of the models of a run that differ."""
    old, new = before.within(first, end), after.within(first, end)
    one, other = next(old, None), next(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[0], one[1], None
            one = next(old, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(new, None)
        else:
            if one[1] != other[1]:
                yield one[0], one[1], other[1]
            one, other = next(old, None), next(new, None)


def _general(path: str) -> str:
    """Write a path with `*` for each index of an array, so that elements count as one field."""
    return "/".join("*" if part.isdigit() else part for part in path.split("/"))
