"""Events that cannot be folded, over a real RocksDB and a topic in memory: nothing is lost, nothing is folded twice."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projections.contract import CqrsProjection, Event
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings, RecoverySettings
from streams.data.answering import Answering
from streams.data.cache import ModelCannotBeStored
from streams.data.codec import decoded
from streams.data.fold import Fold, feed
from streams.data.json_codec import JsonCodec
from streams.data.letter import Letter, Mark, Request, parse
from streams.data.letterbox import Letterbox
from streams.data.letters import Letters
from streams.data.recovery import Failure, Kind, Recovery, recovery_of
from streams.data.rescue import Rescue, Unguarded
from streams.data.rocks_partition import RocksPartition
from streams.data.serde import serde_for
from streams.data.store import LETTER, StoreState
from streams.errors import BrokerUnavailable, EventError, ProjectionError
from streams.types import TopicInfo
from tests.integration.versions import Mended
from tests.support import MadeRecord, Tally, envelope, folded

FRESH = StoreState(directory="d", build=1, partition=0, start=0, position=0)
KINDS = (Kind.UNDECODABLE, Kind.FAILED, Kind.UNSTORABLE)
DEAD_LETTERS = Recovery(live=dict.fromkeys(KINDS, "dead-letter"))
SKIPS = Recovery(live=dict.fromkeys(KINDS, "skip"), skip_budget=10**6)
BAD = ("fail", "unstorable", "torn")


class Months(CqrsProjection[dict[str, Any]]):
    """Several models of each stream: by what the event says, or by nothing where that fails."""

    name = "months"
    partition_by = "stream"

    def extract_model_id(self, event: Event) -> str | None:
        return f"{event.stream}/{event.data['n'] % 2}"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        return Tally().apply_to_model(model, event)


class Partition:
    """One partition as an agent folds it, with a topic of dead letters that is a list."""

    def __init__(
        self,
        path: Path,
        policy: Recovery,
        projection: CqrsProjection[Any] | None = None,
        topic: list[Any] | None = None,
    ) -> None:
        self.path, self.policy, self.projection = path, policy, projection or Tally()
        self.topic: list[dict[str, Any]] = [] if topic is None else topic
        self.begun_again = 0
        self.has_sent = False  # letters that have arrived, and nobody knows it
        self.open()

    def open(self) -> None:
        store = RocksPartition.open(self.path, FRESH)
        serde = serde_for(self.projection.model_type())
        self.fold = Fold(self.projection, serde, store)
        self.letters = Letters(self.projection, "g", "t", store)
        self.seen = store.state.letters
        self.rescue = self.fold.rescue = Rescue(
            self.projection, serde, self.fold.cache, JsonCodec(), self.policy, self.letters, "tally.v1", "g"
        )
        self.answering = Answering(self.fold, self.rescue, JsonCodec())
        self.read_topic()

    def read_topic(self) -> None:
        while self.seen < len(self.topic):
            self.letters.saw(said(self.topic[self.seen]), self.seen)
            self.seen += 1

    def take(self, log: Sequence[MadeRecord], number: int) -> None:
        """Fold so many records of the log, from the position on; one that fails is read again where it has to be."""
        end = self.fold.position + number
        while batch := [one for one in log if self.fold.position <= one.offset() < end]:
            try:
                feed(JsonCodec(), batch, (self.fold,))
            except Unguarded:
                self.fold.discard()
                self.begun_again += 1

    def commit(self, log: Sequence[MadeRecord], *, dies_before_the_store: bool = False) -> None:
        at = self.fold.position
        while True:
            self.topic += [one.record() for one in (*self.letters.outbox.to_send(), *self.letters.saying)]
            self.letters.outbox.arrived()
            self.has_sent = False
            self.letters.said()
            if dies_before_the_store:
                self.crash()
                return
            try:
                self.fold.commit()
                self.fold.carefully = False
                if self.letters.saying:
                    continue
            except ModelCannotBeStored:
                self.fold.discard()
                self.fold.carefully = True
                self.take(log, at - self.fold.position)
            else:
                return

    def lose(self) -> None:
        """Send letters that do not arrive; not where others did, since it is not known which, and all go again."""
        if not self.has_sent:
            self.letters.outbox.to_send()
            self.letters.outbox.not_arrived()

    def crash(self) -> None:
        self.fold.close()
        self.has_sent = False
        self.open()

    def ask(self, verb: str, **which: Any) -> None:
        request = Request(id=f"r{len(self.topic)}", verb=verb, group="g", partition=0, **which)  # type: ignore[arg-type]
        self.topic.append(request.record())
        self.read_topic()
        self.answer()

    def answer(self) -> None:
        while self.letters.request is not None:
            self.answering.advance()

    def models(self) -> dict[str, Any]:
        serde = serde_for(self.projection.model_type())
        found: dict[str, Any] = {}
        for raw in self.fold._store.ids():  # type: ignore[attr-defined]
            stored = self.fold._store.get(raw.decode())
            assert stored is not None
            found[raw.decode()] = serde.decode(stored)
        return found

    def waiting(self) -> list[int]:
        return sorted(letter.offset for letter in self.letters.in_order())

    def told(self) -> dict[int, str]:
        """What the topic says of each event: the last word of each letter."""
        told: dict[int, str] = {}
        for record in self.topic:
            one = said(record)
            if isinstance(one, Letter):
                told[one.offset] = "skipped" if one.skipped else "waiting"
            elif isinstance(one, Mark):
                told[one.offset] = "waiting" if one.result == "failed" else one.result
        return told


def said(record: dict[str, Any]) -> Any:
    return parse(record["partition"], record["key"], record["value"], record["headers"], "g")


def log_of(kinds: Sequence[tuple[str, str]]) -> list[MadeRecord]:
    return [
        MadeRecord(
            b"{torn" if kind == "torn" else envelope(number, kind), stream.encode(), number, headers_=(("h", b"1"),)
        )
        for number, (stream, kind) in enumerate(kinds)
    ]


def held_back(kinds: Sequence[tuple[str, str]], projection: CqrsProjection[Any] | None = None) -> set[int]:
    """Offsets that wait when each that fails holds all later ones of its model back."""
    blocked: set[str] = set()
    waiting = set()
    for offset, (stream, kind) in enumerate(kinds):
        if (kind in BAD or stream in blocked) and kind != "ignore":
            blocked.add(stream)
            waiting.add(offset)
    return waiting


def _has_unstorable(kinds: Sequence[tuple[str, str]]) -> bool:
    """A model that cannot be stored is found when it is stored; one that is deleted before never is."""
    return any(kind == "unstorable" for _, kind in kinds)


HISTORY = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from(["add", "add", "add", "add", "drop", "ignore", "fail", "unstorable", "torn"]),
    ),
    max_size=60,
).map(lambda kinds: [(one, "add" if kind == "drop" and _has_unstorable(kinds) else kind) for one, kind in kinds])
SOME = [("a", "fail"), ("b", "add"), ("b", "fail"), ("c", "torn")]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("fold"), st.integers(1, 20)),
        st.tuples(st.sampled_from(["commit", "crash", "discard", "die"]), st.just(0)),
        st.tuples(st.just("evict"), st.integers(0, 3000)),
        st.tuples(st.just("guard"), st.integers(0, 30)),
        st.tuples(st.just("send"), st.just(0)),
        st.tuples(st.just("lose"), st.just(0)),
    ),
    max_size=25,
)


def run(partition: Partition, log: list[MadeRecord], steps: Sequence[tuple[str, int]]) -> None:
    for step, number in [*steps, ("fold", 100), ("commit", 0)]:
        if step == "fold":
            partition.take(log, number)
        elif step == "commit":
            partition.commit(log)
        elif step == "die":
            partition.commit(log, dies_before_the_store=True)
        elif step == "crash":
            partition.crash()
        elif step == "discard":
            partition.fold.discard()
        elif step == "send":
            partition.topic += [one.record() for one in partition.letters.outbox.to_send()]
            partition.has_sent = True
        elif step == "lose":
            partition.lose()
        elif step == "guard":
            for outcome in chain.from_iterable(decoded(JsonCodec(), log[number : number + 1])):
                if isinstance(outcome, Event):
                    partition.rescue.guard(outcome, partition.fold.events)
        else:
            partition.fold.cache.evict(number)


@settings(max_examples=80, deadline=None)
@given(HISTORY, STEPS)
@example(SOME, [("fold", 3), ("send", 0), ("discard", 0)])
@example(SOME, [("fold", 3), ("lose", 0), ("discard", 0)])
@example(SOME, [("fold", 3), ("lose", 0), ("send", 0), ("crash", 0)])
def test_with_dead_letters_models_are_the_fold_of_all_that_does_not_wait(
    kinds: list[tuple[str, str]], steps: list[tuple[str, int]]
) -> None:
    log = log_of(kinds)
    with tempfile.TemporaryDirectory() as directory:
        partition = Partition(Path(directory) / "0", DEAD_LETTERS)
        run(partition, log, steps)
        waits = held_back(kinds)
        assert partition.models() == folded([one for one in log if one.offset() not in waits])
        assert partition.waiting() == sorted(waits)
        assert partition.letters.waiting == len(waits) == partition.fold._store.state.dead_letters
        assert {offset for offset, word in partition.told().items() if word == "waiting"} == waits
        letters = [one.offset for one in map(said, partition.topic) if isinstance(one, Letter)]
        assert len(letters) == len(set(letters)), "a letter was written twice"
        partition.fold.close()


@settings(max_examples=80, deadline=None)
@given(HISTORY, STEPS)
@example(SOME, [("fold", 3), ("send", 0), ("discard", 0)])
@example(SOME, [("fold", 3), ("lose", 0), ("discard", 0)])
@example(SOME, [("fold", 3), ("lose", 0), ("send", 0), ("crash", 0)])
def test_with_skips_models_are_the_fold_of_all_others_and_each_is_kept_once(
    kinds: list[tuple[str, str]], steps: list[tuple[str, int]]
) -> None:
    log = log_of(kinds)
    with tempfile.TemporaryDirectory() as directory:
        partition = Partition(Path(directory) / "0", SKIPS)
        run(partition, log, steps)
        bad = {offset for offset, (_, kind) in enumerate(kinds) if kind in BAD}
        assert partition.models() == folded([one for one in log if one.offset() not in bad])
        assert partition.told() == dict.fromkeys(bad, "skipped")
        assert partition.fold._store.state.skipped == len(bad)
        letters = [one.offset for one in map(said, partition.topic) if isinstance(one, Letter)]
        assert len(letters) == len(set(letters)), "a letter was written twice"
        partition.fold.close()


@settings(max_examples=80, deadline=None)
@given(HISTORY, STEPS, st.lists(st.tuples(st.sampled_from(["retry", "drop"]), st.sampled_from("abcde")), max_size=5))
def test_once_all_is_retried_or_dropped_models_are_the_fold_of_all_that_was_not_dropped(
    kinds: list[tuple[str, str]], steps: list[tuple[str, int]], requests: list[tuple[str, str]]
) -> None:
    log = log_of([(stream, "fail" if kind == "torn" else kind) for stream, kind in kinds])
    with tempfile.TemporaryDirectory() as directory:
        partition = Partition(Path(directory) / "0", DEAD_LETTERS)
        run(partition, log, steps)
        # Other code, by which nothing fails: it was adopted.
        partition.fold.close()
        partition.projection = Mended()
        partition.open()
        for verb, stream in requests:
            partition.ask(verb, models=[stream])
            partition.crash()  # nothing of it was committed, and it is carried out again
            partition.answer()
            partition.commit(log)
        partition.ask("retry")
        partition.commit(log)
        dropped = {offset for offset, word in partition.told().items() if word == "dropped"}
        assert partition.waiting() == []
        assert partition.models() == folded([one for one in log if one.offset() not in dropped], Mended())
        assert set(partition.told().values()) <= {"folded", "dropped"}
        partition.fold.close()


def test_a_retry_stops_at_the_first_that_fails_again_and_other_models_are_untouched(tmp_path: Path) -> None:
    kinds = [("a", "add"), ("a", "fail"), ("b", "fail"), ("a", "add"), ("b", "add"), ("c", "add")]
    log = log_of(kinds)
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    run(partition, log, [])
    before = partition.models()
    partition.ask("retry", models=["a"])
    partition.commit(log)
    assert partition.models() == before
    assert partition.waiting() == [1, 2, 3, 4]
    partition.ask("drop", offsets=[1])  # and what only waited behind it is folded
    partition.commit(log)
    assert partition.waiting() == [2, 4]
    assert partition.models()["a"] == folded([log[0], log[3]])["a"]
    assert "b" not in partition.models()
    assert partition.told() == {1: "dropped", 2: "waiting", 3: "folded", 4: "waiting"}
    partition.fold.close()


def test_a_letter_has_all_that_its_record_had(tmp_path: Path) -> None:
    log = log_of([("ä", "add"), ("ä", "fail")])
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    run(partition, log, [])
    (record,) = partition.topic
    assert (record["partition"], record["key"], record["value"]) == (0, "ä".encode(), log[1].value())
    letter = said(record)
    assert isinstance(letter, Letter)
    assert letter.headers == (("h", b"1"),)
    assert (letter.where, letter.timestamp, letter.kind) == ("t[0]@1", 1_700_000_000_000, "failed")
    assert (letter.id, letter.projection, letter.generation, letter.group) == ("g/t[0]@1", "tally", "tally.v1", "g")
    assert (letter.event_id, letter.event_type, letter.stream, letter.model) == ("e1", "fail", "ä", "ä")
    assert letter.error == "ValueError: cannot fold e1 (support.py:73 in apply_to_model)"
    assert letter == next(partition.letters.in_order())
    partition.fold.close()


def test_models_of_one_stream_wait_each_behind_its_own_and_all_behind_what_is_no_event(tmp_path: Path) -> None:
    # n is the number: even ones are of s/0, odd ones of s/1
    log = log_of([("s", "add"), ("s", "fail"), ("s", "add"), ("s", "add"), ("s", "torn"), ("s", "add"), ("s", "add")])
    partition = Partition(tmp_path / "0", DEAD_LETTERS, Months())
    run(partition, log, [])
    assert partition.waiting() == [1, 3, 4, 5, 6]
    assert set(partition.models()) == {"s/0"}
    assert partition.models()["s/0"]["count"] == 2
    partition.ask("drop", offsets=[4])  # s/0 goes on, and s/1 waits behind its own
    partition.commit(log)
    assert partition.waiting() == [1, 3, 5]
    assert partition.models()["s/0"]["count"] == 3
    partition.fold.close()


def test_a_record_whose_stream_nobody_can_tell_halts_rather_than_have_others_go_past_it(tmp_path: Path) -> None:
    log = [MadeRecord(envelope(0), b"s", 0), MadeRecord(b"{torn", None, 1)]
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    with pytest.raises(EventError, match=r"t\[0\]@1 is no event"):
        feed(JsonCodec(), log, (partition.fold,))
    partition.fold.close()
    skipping = Partition(tmp_path / "1", SKIPS)
    skipping.take(log, 5)
    assert skipping.letters.skipped == 1
    skipping.fold.close()


def test_an_event_is_never_folded_again_that_was_dropped_wherever_it_is_come_by(tmp_path: Path) -> None:
    log = log_of([("a", "fail"), ("a", "add")])
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    run(partition, log, [])
    partition.ask("drop", offsets=[0])
    partition.commit(log)
    partition.fold.close()
    # Another worker, with a store of its own, folds the same generation from the beginning.
    other = Partition(tmp_path / "1", DEAD_LETTERS, topic=partition.topic)
    run(other, log, [])
    assert other.models() == partition_models(log[1:])
    assert other.waiting() == []
    other.crash()
    assert other.letters.dropped == {0}
    other.fold.close()


def partition_models(log: Sequence[MadeRecord]) -> dict[str, Any]:
    return folded(log)


def test_a_letter_of_an_event_that_is_folded_after_all_is_taken_back(tmp_path: Path) -> None:
    log = log_of([("a", "fail"), ("a", "add")])
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    partition.take(log, 2)
    partition.commit(log, dies_before_the_store=True)
    assert partition.told() == {0: "waiting", 1: "waiting"}
    partition.fold.close()
    partition.projection = Mended()
    partition.open()
    run(partition, log, [])
    assert partition.told() == {0: "folded", 1: "folded"}
    assert partition.models() == folded(log, Mended())
    partition.fold.close()


def test_each_type_that_fails_has_what_is_not_committed_folded_again_once(tmp_path: Path) -> None:
    """However long ago the last commit is; and a type may be whatever the codec gives."""

    class Breaking(Tally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            model = super().apply_to_model(model, event)
            assert event.type in ("add", 7), "it breaks"
            return model

    kinds: list[Any] = ["add"] * 50_000
    for offset, kind in ((25_000, "x"), (30_000, ["y"]), (30_010, "x"), (31_000, {"z": 1}), (45_000, "z"), (45_001, 7)):
        kinds[offset] = kind
    log = [
        MadeRecord(orjson.dumps({"id": f"e{number}", "type": kind, "data": {}}), b"abcde"[number % 5 :][:1], number)
        for number, kind in enumerate(kinds)
    ]
    partition = Partition(tmp_path / "0", SKIPS, Breaking())
    partition.take(log, len(log))
    partition.commit(log)
    good = [record for record, kind in zip(log, kinds, strict=True) if kind in ("add", 7)]
    assert partition.models() == folded(good)
    assert partition.letters.skipped == 5
    assert partition.begun_again == 2  # at the first, and at "z"
    partition.fold.close()


def test_letters_count_as_memory_until_they_are_committed(tmp_path: Path) -> None:
    log = log_of([("a", "fail"), *[("a", "add")] * 999])
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    partition.take(log, 500)
    assert partition.fold.keep_to(16 << 20) < 1 < partition.fold.keep_to(512 << 10)
    partition.topic += [one.record() for one in partition.letters.outbox.to_send()]
    assert partition.fold.keep_to(512 << 10) > 1  # they still are what the next commit writes
    partition.commit(log)
    assert partition.fold.keep_to(512 << 10) == 0
    assert partition.letters.memory_bytes == 0
    partition.fold.close()


def test_types_without_end_that_fail_are_not_each_a_reason_to_begin_again(tmp_path: Path) -> None:
    class Breaking(Tally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            model = super().apply_to_model(model, event)
            assert event.type == "add", "it breaks"
            return model

    kinds = [("abcde"[number % 5], f"type {number}" if number % 10 == 0 else "add") for number in range(5000)]
    log = log_of(kinds)
    partition = Partition(tmp_path / "0", SKIPS, Breaking())
    partition.take(log, len(log))
    partition.commit(log)
    assert partition.models() == folded([one for one, (_, kind) in zip(log, kinds, strict=True) if kind == "add"])
    assert partition.begun_again == 64
    partition.fold.close()


def test_skipping_ends_with_its_budget(tmp_path: Path) -> None:
    log = log_of([("a", "fail"), ("b", "torn"), ("c", "fail")])
    partition = Partition(tmp_path / "0", replace(SKIPS, skip_budget=2))
    with pytest.raises(ProjectionError, match=r"t\[0\]@2"):
        partition.take(log, 3)
    assert partition.letters.skipped == 2
    partition.fold.close()


def test_settings_say_what_becomes_of_which_kind_apart_for_rebuilds() -> None:
    chosen = FoldSettings(
        on_error="dead-letter", recovery=RecoverySettings(rebuild={"undecodable": "skip"}, live="halt", attempts=2)
    )
    policy = recovery_of(chosen)
    failure = Failure(kind=Kind.UNDECODABLE, error="", topic="t", partition=0, offset=0, is_rebuild=True)
    assert policy.keeps
    assert policy.decide(failure) == "skip"
    assert policy.decide(replace(failure, kind=Kind.FAILED)) == "dead-letter"
    assert policy.decide(replace(failure, is_rebuild=False)) == "halt"
    transient = replace(failure, kind=Kind.FAILED, is_transient=True)
    assert [policy.decide(replace(transient, attempt=n)) for n in (1, 2)] == ["retry", "dead-letter"]
    assert not recovery_of(FoldSettings()).keeps


def test_a_store_that_is_set_back_comes_by_what_waits_once_more_and_keeps_it_once(tmp_path: Path) -> None:
    kinds = [("a", "add"), ("b", "fail"), ("a", "fail"), ("a", "add"), ("b", "add")]
    log = log_of(kinds)
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    run(partition, log, [])
    store = partition.fold._store
    store.commit([], msgspec.structs.replace(store.state, position=2, events=2))
    partition.crash()
    assert partition.waiting() == [1]
    run(partition, log, [])
    assert partition.waiting() == [1, 2, 3, 4]
    assert partition.letters.waiting == store_of(partition).state.dead_letters == 4
    assert len([one for one in map(said, partition.topic) if isinstance(one, Letter)]) == 4
    partition.fold.close()


def store_of(partition: Partition) -> Any:
    return partition.fold._store


def test_what_is_asked_for_and_does_not_wait_is_told_to_be_folded(tmp_path: Path) -> None:
    log = log_of([("a", "fail"), ("a", "add")])
    partition = Partition(tmp_path / "0", DEAD_LETTERS)
    run(partition, log, [])
    # As after a crash between the store and the topic.
    store_of(partition).commit([], store_of(partition).state, dict.fromkeys(dict(store_of(partition).beside(LETTER))))
    partition.crash()
    assert partition.told() == {0: "waiting", 1: "waiting"}
    partition.ask("retry", offsets=[0, 1])
    partition.commit(log)
    assert partition.told() == {0: "folded", 1: "folded"}
    assert partition.models() == {}
    partition.fold.close()


def test_brokers_that_do_not_answer_are_waited_for_and_have_refused_nothing() -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=0.5)
    events = TopicInfo(name="t", id="", partitions=1)
    box = Letterbox(kafka, Cluster(kafka), "tally", "g", events)
    vars(box)["_topic"] = events
    with pytest.raises(BrokerUnavailable, match="did not acknowledge"):
        box.write([Request(id="r", verb="retry", group="g", partition=0)])
    box.close()
