"""What every `ReadModelStore` must do. A test class of yours inherits it and says how to make one; see `contracts`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from streams.data.filters import Condition, Query
from streams.data.read_models import AtomicReadModelStore, Position, ReadModelStore

__all__ = ["AtomicReadModelStoreContract", "ReadModelStoreContract"]

_IDS = ["plain", "Plain", "é", "e\u0301", "a/b?c=d&e", "with space", " leading", "100%", "'quoted\"", "🧺", "x" * 500]


class ReadModelStoreContract(ABC):
    """What a `ReadModelStore` promises."""

    @abstractmethod
    def make(self) -> ReadModelStore[Any]:
        """Make a store that holds nothing."""

    def again(self, store: ReadModelStore[Any]) -> ReadModelStore[Any]:
        """Give the store as the next process would find it; the one before is used no more. By default, it is that."""
        return store

    def model(self, number: int, name: str = "é") -> Any:
        """Make a model; by default a dict. One of your type is to have fields `number` and `name`."""
        return {"number": number, "name": name, "tags": ["a", str(number)], "nothing": None}

    def grow(self, model: Any) -> None:
        """Change a model in place."""
        model["tags"].append("more")

    def test_what_is_not_there_is_no_error(self) -> None:
        """An empty store answers."""
        store = self.make()
        assert store.get("a") is None
        assert not store.exists("a")
        assert store.count() == 0
        assert list(store.iterate()) == []
        store.delete("a")
        store.bulk_upsert({})
        store.clear()

    def test_put_is_got_again_as_it_was_and_replaced(self) -> None:
        """There is one model for each id: the last."""
        store = self.make()
        store.upsert("a", self.model(1))
        assert store.get("a") == self.model(1)
        store.upsert("a", self.model(2))
        store = self.again(store)
        assert store.get("a") == self.model(2)
        assert store.count() == 1
        assert store.exists("a")

    def test_ids_are_any_texts_and_none_is_another(self) -> None:
        """Case, accents, spaces and signs all count."""
        store = self.make()
        for number, model_id in enumerate(_IDS):
            store.upsert(model_id, self.model(number))
        assert {model_id: store.get(model_id) for model_id in _IDS} == {
            model_id: self.model(number) for number, model_id in enumerate(_IDS)
        }
        assert store.count() == len(_IDS)
        store.delete("Plain")
        assert (store.exists("plain"), store.exists("Plain")) == (True, False)

    def test_what_is_put_and_got_is_not_what_is_kept(self) -> None:
        """The fold goes on changing what it has."""
        store = self.make()
        model = self.model(1)
        store.upsert("a", model)
        self.grow(model)
        assert store.get("a") == self.model(1)
        self.grow(store.get("a"))
        assert store.get("a") == self.model(1)

    def test_deleted_is_gone_and_the_others_are_not(self) -> None:
        """A missing model is as good as deleted."""
        store = self.make()
        store.bulk_upsert({"a": self.model(1), "b": self.model(2)})
        store.delete("a")
        store.delete("a")
        assert dict(self.again(store).iterate()) == {"b": self.model(2)}

    def test_cleared_is_empty_and_can_be_filled_again(self) -> None:
        """Nothing of before is left."""
        store = self.make()
        store.bulk_upsert({str(number): self.model(number) for number in range(50)})
        store.clear()
        assert (store.count(), list(store.iterate())) == (0, [])
        store.upsert("a", self.model(1))
        assert dict(self.again(store).iterate()) == {"a": self.model(1)}

    def test_many_are_put_and_each_is_given_once(self) -> None:
        """Those that are there are replaced, and the others stay."""
        store = self.make()
        store.bulk_upsert({str(number): self.model(number) for number in range(1000)})
        store.bulk_upsert({str(number): self.model(-number) for number in range(500, 1500)})
        store = self.again(store)
        found = list(store.iterate())
        assert len(found) == store.count() == 1500
        assert dict(found) == {str(number): self.model(number if number < 500 else -number) for number in range(1500)}

    def test_those_that_are_asked_for_are_found_in_order_by_pages(self) -> None:
        """Each once, in the order that was asked for."""
        store = self.make()
        store.bulk_upsert({str(n): self.model(n % 7, name="even" if n % 2 == 0 else "odd") for n in range(40)})
        query = Query(where=(Condition(path="name", operator="eq", value="even"),), order_by=("-number",), limit=6)
        found: list[tuple[str, Any]] = []
        while True:
            page = store.query(query)
            assert len(page.models) <= 6
            found += page.models
            if page.cursor is None:
                break
            query = Query(where=query.where, order_by=query.order_by, limit=6, after=page.cursor)
        wanted = sorted((-(n % 7), str(n)) for n in range(0, 40, 2))
        assert found == [(model_id, self.model(-number, name="even")) for number, model_id in wanted]


class AtomicReadModelStoreContract(ReadModelStoreContract):
    """What an `AtomicReadModelStore` promises beyond that."""

    @abstractmethod
    def make(self) -> AtomicReadModelStore[Any]:
        """Make a store that holds nothing."""

    def position(self, partition: int, offset: int) -> Position:
        """Make a position with something in each field."""
        return Position(
            topic="é",
            topic_id="id-1",
            partition=partition,
            start=3,
            offset=offset,
            code="c0de",
            events=9,
            declined=2,
            deleted=1,
            models=4,
            last_event_id="é-1",
            record_ms=1_767_225_600_000,
        )

    def positions(self, store: ReadModelStore[Any]) -> Mapping[int, Position]:
        """Give what a store says of itself."""
        assert isinstance(store, AtomicReadModelStore)
        return store.positions()

    def test_commit_writes_deletes_and_notes_the_position(self) -> None:
        """All of it is there together, and the other partitions' positions are as they were."""
        store = self.make()
        assert store.positions() == {}
        store.commit({"a": self.model(1), "b": self.model(2)}, self.position(0, 5))
        store.commit({"c": self.model(3)}, self.position(7, 2**40))
        store.commit({"a": None, "b": self.model(4), "gone": None}, self.position(0, 9))
        found = self.again(store)
        assert dict(found.iterate()) == {"b": self.model(4), "c": self.model(3)}
        assert self.positions(found) == {0: self.position(0, 9), 7: self.position(7, 2**40)}

    def test_commit_without_models_notes_the_position(self) -> None:
        """Events that were declined move it too."""
        store = self.make()
        store.commit({}, self.position(1, 4))
        assert self.positions(self.again(store)) == {1: self.position(1, 4)}

    def test_commit_that_fails_has_written_nothing(self) -> None:
        """Neither models nor the position."""
        store = self.make()
        store.commit({"a": self.model(1)}, self.position(0, 5))
        try:
            store.commit(_Breaking({"a": None, "b": self.model(2), "c": self.model(3)}), self.position(0, 9))
        except Exception:  # noqa: BLE001 - the store may say so in its own words
            pass
        else:
            raise AssertionError("it has swallowed an error")
        found = self.again(store)
        assert dict(found.iterate()) == {"a": self.model(1)}
        assert self.positions(found) == {0: self.position(0, 5)}
        assert isinstance(found, AtomicReadModelStore)
        found.commit({"b": self.model(2)}, self.position(0, 6))
        assert dict(found.iterate()) == {"a": self.model(1), "b": self.model(2)}

    def test_cleared_has_no_positions(self) -> None:
        """Models and positions go together."""
        store = self.make()
        store.commit({"a": self.model(1)}, self.position(0, 5))
        store.clear()
        found = self.again(store)
        assert (list(found.iterate()), self.positions(found)) == ([], {})


class _Broken(Exception):
    pass


class _Breaking(dict[str, Any]):
    """Mutations that cannot be read to their end."""

    def __iter__(self) -> Iterator[str]:
        raise _Broken

    def items(self) -> Any:
        for number, pair in enumerate(super().items()):
            if number == 2:
                raise _Broken
            yield pair

    keys = values = __iter__  # type: ignore[assignment]
