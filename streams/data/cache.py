"""One partition's models between two checkpoints: a write-back cache over its store."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from types import NoneType
from typing import Any

from streams.data.serde import NotStorable, Serde
from streams.data.store import FarStore, PartitionStore
from streams.errors import StoreCorrupt

__all__ = ["MISSING", "ModelCache", "ModelCannotBeStored"]

MISSING = object()
_KEY_OVERHEAD_BYTES = 200  # a dict slot, the id and its cost, twice
_GUESSED_EXPANSION = 6.0
_SAMPLE_EVERY = 128
_FIRST_SHARE = 256
_FIRST_MODELS = 64
_LARGE_EVENT_BYTES = 64 << 10
_TRIM_SHARE = 8
_FOR_MODELS = 0.8
"""The share of the limit that is for models; the rest is for what the allocator and RocksDB need beside them."""
_M_MMAP_THRESHOLD = -3


class ModelCannotBeStored(Exception):
    """A model of the batch would not come back from the store as it went in.

    Which event made it so is found by folding again, with a check after each event.
    """


class ModelCache:
    """Models decoded in memory while they fit.

    Those changed since the last commit are in `dirty`; the rest in a second dictionary. Insertion order there is
    recency of change, because a model that is changed moves from one to the other. Eviction therefore takes the models
    that went unchanged the longest, at no cost per event.

    How much memory a model takes is reckoned from its size as stored, when it was last encoded or read. The factor
    between the two is measured, for each order of magnitude of size, on models that come by.

    Args:
        serde: How models are stored.
        store: Where.
    """

    def __init__(self, serde: Serde, store: PartitionStore) -> None:
        _keep_large_blocks_apart()
        self._serde = serde
        self._store = store
        self._far = store if isinstance(store, FarStore) else None
        self._expansion = [_GUESSED_EXPANSION] * 64  # memory over stored size, by the size's number of bits
        # Measured at commits: the memory that a model takes, that one grows by for each byte of events, and the bytes
        # that a commit writes for each byte of memory of its models.
        self._average: float | None = None
        self._growth = 0.0
        self._stored_share = 0.0
        self._written_bytes = 0
        self._evicted_bytes = 0
        self._sample_at = 0
        self._samples = 0
        self.reset()

    def reset(self) -> None:
        """Forget every model in memory, changed or not: user code may have half changed them."""
        self.dirty: dict[str, Any] = {}
        """Models changed since the last commit; None for one that is deleted."""
        self.added: set[str] = set()
        """Ids in `dirty` that the store does not have."""
        self.unseen_bytes = 0
        """Of the events since the last commit, by which models may have grown since they were measured."""
        self._large_memory = 0.0  # what a model takes that keeps the large events seen since then
        self._dirty_cost = 0  # of those that were there before, as of then
        self._clean: dict[str, Any] = {}
        self._clean_costs: dict[str, int] = {}  # a tuple with the model would cost the garbage collector
        self._clean_cost = 0
        self._holds_all = self._store.state.models == 0  # the store has no model that is not in memory
        self._fetched: dict[str, bytes | None] = {}

    def saw(self, sizes: Sequence[int]) -> None:
        """Take note of the sizes in bytes of the events that are about to be folded.

        Averages tell how much memory many small ones will take; a few large ones are reckoned one by one.
        """
        self.unseen_bytes += sum(sizes)
        if max(sizes) > _LARGE_EVENT_BYTES:
            for size in sizes:
                if size > _LARGE_EVENT_BYTES:
                    self._large_memory += size * self._expansion[size.bit_length()]

    @property
    def is_far(self) -> bool:
        """Whether models are to be asked for before they are needed; see `fetch`."""
        return self._far is not None and not self._holds_all

    def fetch(self, model_ids: Iterable[str]) -> None:
        """Ask a far store at once for those models of the next events that are not here; forget what it gave before.

        Raises:
            StorageError: The store.
        """
        assert self._far is not None
        missing = {one for one in model_ids if one not in self.dirty and one not in self._clean}
        self._fetched = dict.fromkeys(missing) | dict(self._far.fetch(missing)) if missing else {}

    def _get(self, model_id: str) -> bytes | None:
        if self._holds_all:
            return None
        return self._fetched.pop(model_id) if model_id in self._fetched else self._store.get(model_id)

    def load(self, model_id: str) -> Any:
        """Find a model at its first change since the last commit; None where there is none.

        Raises:
            TypeError, UnicodeEncodeError: The id is no id.
            StorageError: The store, or what it holds.
        """
        if type(model_id) is not str:
            raise TypeError(f"extract_model_id gave {model_id!r}; a model's id is a str, or None to decline the event")
        model = self._clean.pop(model_id, None)
        if model is not None:
            cost = self._clean_costs.pop(model_id)
            self._clean_cost -= cost
            self._dirty_cost += cost
        else:
            raw = self._get(model_id)
            if raw is None:
                if not model_id.isascii():
                    model_id.encode()  # fails here, at its event, where it cannot be stored
                self.added.add(model_id)
                return None
            model = self._decode(model_id, raw)
            self._dirty_cost += _KEY_OVERHEAD_BYTES + int(len(raw) * self._expansion[len(raw).bit_length()])
        self.dirty[model_id] = model
        return model

    def _decode(self, model_id: str, raw: bytes) -> Any:
        try:
            return self._serde.decode(raw)
        except Exception as error:
            raise StoreCorrupt(
                f"Model {model_id!r} cannot be read as {self._serde.model.__qualname__}: "
                f"{' '.join(str(error).split())}. "
                "Other code has stored it, or the store is damaged: rebuild from the beginning."
            ) from error

    def remove(self, model_id: str) -> None:
        """Have there be no model of this id."""
        model = self.dirty.get(model_id, MISSING)
        if (self.load(model_id) if model is MISSING else model) is not None:
            self.dirty[model_id] = None

    def restore(self, model_id: str, saved: Any = MISSING) -> None:
        """Have a model be again as it was, whatever user code has made of it.

        Args:
            model_id: Its id.
            saved: What it was, encoded; None where there was none. By default it was as it is in the store.
        """
        if saved is MISSING:
            if model_id in self.added:
                self.added.discard(model_id)
                self.dirty.pop(model_id, None)
                return
            saved = self._store.get(model_id)
        self.dirty[model_id] = None if saved is None else self._decode(model_id, saved)

    def has(self, model_id: str) -> bool:
        """Say whether there is a model of this id, changed or not, in memory or in the store."""
        if model_id in self.dirty:
            return self.dirty[model_id] is not None
        return model_id in self._clean or (not self._holds_all and self._store.get(model_id) is not None)

    def encoded(self) -> Iterator[tuple[str, bytes | None]]:
        """Encode the changed models, and move them to the unchanged ones as it goes.

        Raises:
            ModelCannotBeStored: A model would not come back as it went in.
        """
        try:
            self._serde.check_type(set(map(type, self.dirty.values())) - {NoneType})
        except NotStorable as error:
            raise ModelCannotBeStored(str(error)) from error
        encode, expansion = self._serde.encode, self._expansion
        clean, clean_costs = self._clean, self._clean_costs
        written, cost_of_all = self._written_bytes, 0
        for model_id, model in self.dirty.items():
            if model is None:
                yield model_id, None
                continue
            try:
                raw = encode(model)
                size = len(raw)
                if written >= self._sample_at:
                    self._sample(model, raw, written)
                if b"null" in raw:
                    self._serde.check_null(model, raw)
            except Exception as error:
                raise ModelCannotBeStored(f"model {model_id!r}: {error}") from error
            written += size
            clean[model_id] = model
            clean_costs[model_id] = cost = _KEY_OVERHEAD_BYTES + int(size * expansion[size.bit_length()])
            cost_of_all += cost
            yield model_id, raw
        if cost_of_all:
            self._measure_growth(cost_of_all, written - self._written_bytes)
        self._written_bytes = written
        self._clean_cost += cost_of_all

    def _measure_growth(self, cost: int, written: int) -> None:
        """Learn from a commit what models take that nobody has measured since they were changed."""
        average = cost / len(self.dirty)
        grown = max(0.0, cost - self._dirty_cost - len(self.added) * average) / max(1, self.unseen_bytes)
        self._average = max(average, 0.7 * (self._average or 0.0))
        self._growth = max(grown, 0.7 * self._growth)
        self._stored_share = max(written / cost, 0.7 * self._stored_share)

    def _estimate_average(self) -> None:
        """Measure some models before the first commit does, so that not too much comes together until then."""
        costs = [0]
        for model in islice(filter(None, self.dirty.values()), _FIRST_MODELS):
            with contextlib.suppress(Exception):  # one that cannot be stored is told at the commit
                costs.append(_KEY_OVERHEAD_BYTES + _deep_size(model) + len(self._serde.encode(model)))
        self._average = sum(costs) / max(1, len(costs) - 1)

    def _sample(self, model: Any, raw: bytes, written: int) -> None:
        """Check a model's round trip, and measure it: the first few, and then one in 128 bytes written."""
        self._samples += 1
        self._sample_at = written + len(raw) * min(2**self._samples, _SAMPLE_EVERY)
        self._serde.check_round_trip(model, raw)
        bits = len(raw).bit_length()
        measured = _deep_size(model) / max(1, len(raw))
        self._expansion[bits] += (1.0 if self._expansion[bits] == _GUESSED_EXPANSION else 0.3) * (
            measured - self._expansion[bits]
        )

    def committed(self) -> None:
        """Note that the store has every changed model."""
        self.dirty = {}
        self.added = set()
        self.unseen_bytes = 0
        self._large_memory = 0.0
        self._dirty_cost = 0

    def count(self) -> int:
        """Count the models that the store will have after the commit."""
        added, dirty = self.added, self.dirty
        gone = sum(1 for model_id, model in dirty.items() if model is None and model_id not in added)
        new = sum(1 for model_id in added if dirty.get(model_id) is not None)
        return self._store.state.models + new - gone

    def new_ids(self) -> list[str]:
        """Give the ids of the models that the next commit brings into the store."""
        return [model_id for model_id in self.added if self.dirty.get(model_id) is not None]

    def check_storable(self, model_id: str) -> None:
        """Make sure that one changed model can be stored.

        Raises:
            Exception: It cannot; the message says why.
        """
        model = self.dirty.get(model_id)
        if model is not None:
            self._serde.check_type([type(model)])
            raw = self._serde.encoded(model)
            self._serde.check_round_trip(model, raw)
            if self._far is not None:
                self._far.check(model_id, raw)

    # Memory

    @property
    def memory_bytes(self) -> int:
        """About how much memory the cached models take, and will at the next commit.

        A commit holds the changed ones twice more as bytes: in its batch, and in RocksDB's memory.
        """
        return self._clean_cost + int(self._dirty_memory())

    def _dirty_memory(self) -> float:
        known = self._dirty_cost + len(self.added) * (self._average or 0.0) + self._growth * self.unseen_bytes
        known += self._large_memory
        return known * (1 + 2 * self._stored_share)

    def is_full(self, limit_bytes: int) -> bool:
        """Whether the changed models are about to need, with their commit, half of the limit."""
        return self.fullness(limit_bytes) > 1

    def fullness(self, limit_bytes: int, beside_bytes: int = 0) -> float:
        """Give what share of that they need; likewise with what else a commit takes, all of which has to have room.

        Args:
            limit_bytes: Of the whole cache.
            beside_bytes: What else the commit takes of it.
        """
        if self._average is None:
            if self.unseen_bytes + beside_bytes < limit_bytes // _FIRST_SHARE:
                return 0.0
            self._estimate_average()
        needed = 2 * self._dirty_memory() + beside_bytes
        return max(needed / (_FOR_MODELS * limit_bytes), self.unseen_bytes / limit_bytes)

    def evict(self, limit_bytes: int) -> None:
        """Drop unchanged models, those changed longest ago first, until the cache fits the limit."""
        excess = self.memory_bytes - _FOR_MODELS * limit_bytes
        if excess <= 0 or not self._clean:
            return
        before = self._clean_cost
        while excess > 0 and self._clean:
            # In portions: each pass over the front of a dict walks over what was deleted there before.
            for model_id in list(islice(self._clean, 1 + len(self._clean) // 16)):
                del self._clean[model_id]
                cost = self._clean_costs.pop(model_id)
                self._clean_cost -= cost
                excess -= cost
        self._holds_all = False
        self._evicted_bytes += before - self._clean_cost
        if self._evicted_bytes > limit_bytes // _TRIM_SHARE:
            self._evicted_bytes = 0
            _give_back()


@cache
def _keep_large_blocks_apart() -> None:
    """Let blocks over 128 KiB come from the system and go back to it one by one; by itself glibc stops doing so.

    The setting is the process's. Without it, models of very different sizes leave holes between them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def _give_back() -> None:
    """Give freed memory back to the system."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _deep_size(value: Any) -> int:
    """Give about the memory of a model: its containers and leaves, shared ones counted each time."""
    size = sys.getsizeof(value)
    if isinstance(value, str | bytes | int | float | None):
        return size
    if isinstance(value, dict):
        return size + sum(_deep_size(key) + _deep_size(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return size + sum(map(_deep_size, value))
    if hasattr(value, "__dict__"):
        size += _deep_size(vars(value))
    names = {name for klass in type(value).__mro__ for name in getattr(klass, "__slots__", ())}
    return size + sum(
        _deep_size(getattr(value, name)) for name in names - {"__dict__", "__weakref__"} if hasattr(value, name)
    )
