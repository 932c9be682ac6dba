"""Models of one partition in the order of their ids, in runs whose digests tell whether they are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Protocol

import msgspec

from streams.data.stores import StoreReader

__all__ = ["Models", "NoModels", "Run", "StoredModels", "runs_of"]

_DIGEST = sha256
"""One that databases have too."""
_RUN = 1024
"""Models whose digest is compared at once."""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive models."""

    first: bytes
    """From this id on, up to the next run's first."""
    models: int
    digest: bytes


class Models(Protocol):
    """One partition's models, here or elsewhere, that do not change any more."""

    def runs(
        self,
        firsts: list[bytes] | None,
        check_cancelled: Callable[[], None],
        first: bytes = b"",
        end: bytes | None = None,
    ) -> Iterable[Run]:
        """Give runs that cover all ids, or those from one on and up to another; see `runs_of`."""
        ...

    def within(self, first: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (id, model) from an id on, up to another one; None for the last."""
        ...


class StoredModels:
    """The models in a store, or a copy of one.

    Args:
        store: The store.
    """

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def runs(
        self,
        firsts: list[bytes] | None,
        check_cancelled: Callable[[], None],
        first: bytes = b"",
        end: bytes | None = None,
    ) -> Iterable[Run]:
        """See Models."""
        made = self._store.digests(firsts, _RUN, first, end)
        if made is None:
            return runs_of(self.within(first, end), firsts, check_cancelled, first)
        check_cancelled()
        found = {begin: Run(begin, models, digest) for begin, models, digest in made}
        if firsts is not None:
            return [found.get(begin, Run(begin, 0, _DIGEST().digest())) for begin in firsts]
        return list(found.values()) or [Run(first, 0, _DIGEST().digest())]

    def within(self, first: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """See Models."""
        for model_id, value in self._store.raw_items(first):
            if end is not None and model_id >= end:
                return
            yield model_id, value


class NoModels:
    """The models of a partition that has none."""

    def runs(
        self,
        firsts: list[bytes] | None,
        check_cancelled: Callable[[], None],
        first: bytes = b"",
        end: bytes | None = None,  # noqa: ARG002
    ) -> Iterable[Run]:
        """See Models."""
        return runs_of((), firsts, check_cancelled, first)

    def within(self, _first: bytes, _end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """See Models."""
        return iter(())


def runs_of(
    items: Iterable[tuple[bytes, bytes]],
    firsts: list[bytes] | None,
    check_cancelled: Callable[[], None],
    first: bytes = b"",
) -> Iterator[Run]:
    """Yield runs that cover all ids.

    Args:
        items: (id, model), by the ids' bytes.
        firsts: Where to begin each run; None: one after so many models.
        check_cancelled: Called for each run.
        first: Where the first run begins; `firsts` begins with it too.
    """
    models, digest = 0, _DIGEST()
    ends = None if firsts is None else iter(firsts[1:])
    end = None if ends is None else next(ends, None)
    for model_id, value in items:
        if ends is None:
            if models == _RUN:
                yield Run(first, models, digest.digest())
                check_cancelled()
                first, models, digest = model_id, 0, _DIGEST()
        else:
            while end is not None and model_id >= end:
                yield Run(first, models, digest.digest())
                check_cancelled()
                first, models, digest = end, 0, _DIGEST()
                end = next(ends, None)
        models += 1
        digest.update(b"%d:%b%d:%b" % (len(model_id), model_id, len(value), value))
    yield Run(first, models, digest.digest())
    while ends is not None and end is not None:
        yield Run(end, 0, _DIGEST().digest())
        end = next(ends, None)
