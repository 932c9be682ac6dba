"""Every read model store keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams import MemoryReadModelStore, ReadModelStore, RocksReadModelStore
from streams.errors import ConfigError, StorageError, StoreCorrupt, StoreLocked
from streams.testing import AtomicReadModelStoreContract, ReadModelStoreContract
from tests.integration.sqlite_models import SqliteModels


class Line(msgspec.Struct):
    number: int
    name: str
    tags: list[str]


class LinesContract(AtomicReadModelStoreContract):
    """With a type in place of dicts."""

    def model(self, number: int, name: str = "é") -> Line:
        return Line(number, name, ["a"])

    def grow(self, model: Line) -> None:
        model.tags.append("more")


class TestMemory(AtomicReadModelStoreContract):
    def make(self) -> MemoryReadModelStore[Any]:
        return MemoryReadModelStore()


class TestMemoryOfStructs(LinesContract):
    def make(self) -> MemoryReadModelStore[Any]:
        return MemoryReadModelStore()


class TestSqlite(AtomicReadModelStoreContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "models.db"

    def make(self) -> SqliteModels:
        return SqliteModels(self.path)

    def again(self, store: ReadModelStore[Any]) -> SqliteModels:
        return SqliteModels(self.path)


class RocksContract(AtomicReadModelStoreContract):
    kind: type = dict

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> Iterator[None]:
        self.directory = tmp_path / "deep" / "models"
        self.opened: list[RocksReadModelStore[Any]] = []
        yield
        for one in self.opened:
            one.close()

    def make(self) -> RocksReadModelStore[Any]:
        store: RocksReadModelStore[Any] = RocksReadModelStore(self.directory, self.kind)
        self.opened.append(store)
        return store

    def again(self, store: ReadModelStore[Any]) -> RocksReadModelStore[Any]:
        assert isinstance(store, RocksReadModelStore)
        store.close()
        return self.make()


class TestRocks(RocksContract):
    def test_one_process_has_it_open(self) -> None:
        self.make()
        script = "import sys; from streams import RocksReadModelStore as S; S(sys.argv[1], dict)"
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.directory)], capture_output=True, text=True, timeout=60, check=False
        )
        assert "StoreLocked" in done.stderr
        with pytest.raises(StoreLocked):
            self.make()

    def test_what_was_left_while_it_was_cleared_is_swept(self) -> None:
        self.make().close()
        (self.directory / "gone-0123").mkdir()
        self.make()
        assert [one.name for one in self.directory.iterdir()] == ["models"]

    def test_place_that_cannot_be_is_said(self) -> None:
        self.directory.parent.mkdir()
        self.directory.write_text("a file")
        with pytest.raises(StorageError, match="cannot be made"):
            self.make()

    def test_what_other_types_have_stored_is_said(self) -> None:
        store = self.make()
        store.upsert("a", {"number": 1})
        store.close()
        self.kind = Line
        with pytest.raises(StoreCorrupt, match="model 'a' cannot be read as Line"):
            self.make().get("a")
        with pytest.raises(ConfigError, match="cannot be a int"):
            RocksReadModelStore(self.directory, int)


class TestRocksOfStructs(LinesContract, RocksContract):
    kind = Line


class Plain(ReadModelStore[Any]):
    """The least that a store has to have: no positions, and the methods that have no body."""

    def __init__(self) -> None:
        self.models: dict[str, bytes] = {}

    def upsert(self, model_id: str, model: Any) -> None:
        self.models[model_id] = msgspec.json.encode(model)

    def get(self, model_id: str) -> Any:
        raw = self.models.get(model_id)
        return None if raw is None else msgspec.json.decode(raw)

    def delete(self, model_id: str) -> None:
        self.models.pop(model_id, None)

    def clear(self) -> None:
        self.models.clear()

    def iterate(self) -> Iterator[tuple[str, Any]]:
        return ((model_id, msgspec.json.decode(raw)) for model_id, raw in list(self.models.items()))


class TestPlain(ReadModelStoreContract):
    def make(self) -> Plain:
        return Plain()


def test_the_contract_finds_what_is_wrong(tmp_path: Path) -> None:
    """A store that writes what it could before it fails, and one that hands out what it keeps, do not pass."""

    class HalfWritten(SqliteModels):
        def commit(self, mutations: Mapping[str, Any], position: Any) -> None:
            for model_id, model in mutations.items():
                if model is None:
                    self.delete(model_id)
                else:
                    self.upsert(model_id, model)
            super().commit({}, position)

    class Shared(MemoryReadModelStore[Any]):
        def get(self, model_id: str) -> Any:
            return self._models.get(model_id)

    class OfHalf(AtomicReadModelStoreContract):
        def make(self) -> SqliteModels:
            return HalfWritten(tmp_path / "models.db")

    class OfShared(AtomicReadModelStoreContract):
        def make(self) -> MemoryReadModelStore[Any]:
            return Shared()

    with pytest.raises(AssertionError):
        OfHalf().test_commit_that_fails_has_written_nothing()
    with pytest.raises(AssertionError):
        OfShared().test_what_is_put_and_got_is_not_what_is_kept()


def test_the_store_in_the_documentation_is_the_one_that_is_tested() -> None:
    root = Path(__file__).parents[2]
    code = (root / "tests/integration/sqlite_models.py").read_text().partition("from __future__")[2]
    assert code in (root / "docs/stores.md").read_text()
