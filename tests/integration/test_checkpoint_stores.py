"""Every checkpoint store keeps the contract; what survives the process, survives it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from streams import CheckpointStore, KafkaCheckpointStore, KafkaEventStore, MemoryCheckpointStore, RocksCheckpointStore
from streams.config import KafkaSettings
from streams.errors import ForeignStore, StorageError, StoreCorrupt
from streams.testing import CheckpointStoreContract
from tests.conftest import GroupFactory, TopicFactory


class TestMemory(CheckpointStoreContract):
    def make(self) -> CheckpointStore:
        return MemoryCheckpointStore()


class TestRocks(CheckpointStoreContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "deep" / "checkpoints"

    def make(self) -> RocksCheckpointStore:
        return RocksCheckpointStore(self.directory)

    def test_another_process_sees_it(self) -> None:
        self.make().save(self.name, self.checkpoint())
        script = (
            "import sys; from streams import RocksCheckpointStore as S; print(S(sys.argv[1]).load('contract').build)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.directory)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == "3\n"

    @pytest.mark.parametrize(
        ("raw", "kind", "why"),
        [
            (b'{"format":9}', ForeignStore, "has format 9; this version of refold knows 1"),
            (b"{oops", StoreCorrupt, "cannot be read"),
            (b'{"format":1,"checkpoint":{"positions":3}}', StoreCorrupt, "cannot be read"),
        ],
    )
    def test_what_is_not_ours_is_said(self, raw: bytes, kind: type[StorageError], why: str) -> None:
        self.directory.parent.mkdir()
        db = Rdict(str(self.directory), Options(raw_mode=True))
        db.put(b"contract", raw)
        db.close()
        with pytest.raises(kind, match=why):
            self.make().load(self.name)

    def test_place_that_cannot_be_is_said(self) -> None:
        self.directory.parent.mkdir()
        self.directory.write_text("a file")
        with pytest.raises(StorageError, match="cannot be opened"):
            self.make().save(self.name, self.checkpoint())


class TestKafka(CheckpointStoreContract):
    @pytest.fixture(autouse=True)
    def place(self, bootstrap_servers: str, topic: TopicFactory, group: GroupFactory) -> None:
        self.topic = topic(2)
        self.group = group()
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)

    def make(self) -> KafkaCheckpointStore:
        return KafkaCheckpointStore(self.group, KafkaEventStore(self.topic, kafka=self.kafka))


def test_contract_finds_a_store_that_forgets() -> None:
    class Forgetful(MemoryCheckpointStore):
        def save(self, name: str, checkpoint: object) -> None:
            pass

    class Broken(CheckpointStoreContract):
        def make(self) -> CheckpointStore:
            return Forgetful()

    with pytest.raises(AssertionError):
        Broken().test_saved_is_loaded_again_as_it_was()
    assert replace(Broken().checkpoint(), build=4) != Broken().checkpoint()
