"""Events that cannot be folded, on the real broker: kept once, in order, and folded or dropped later."""

from __future__ import annotations

import dataclasses
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from streams import Action, Failure, RecoveryPolicy, SpecificStreams
from streams.broker import EmbeddedBroker
from streams.config import FoldSettings
from streams.control.dead_letters import DeadLetters
from streams.data.letter import Letter, said, topic_of
from streams.data.letterbox import Letterbox
from streams.errors import ProjectionError
from tests.integration.crasher import Job
from tests.integration.kit import TALLY, Kit, produce, read_log, until
from tests.integration.test_crash_points import die
from tests.integration.versions import Mended, Passing
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]
SLOW = "tests.integration.slow:SlowTally"
MENDED = "tests.integration.versions:Mended"
DEAD_LETTER = {"REFOLD_ON_ERROR": "dead-letter", "REFOLD_SESSION_TIMEOUT_S": "6"}
BAD = ("fail", "unstorable", "torn")
STREAMS = 60


def poisoned(count: int, share: float, seed: int = 1, first: int = 0) -> list[tuple[str, bytes]]:
    """Events of which a share cannot be folded, of each kind; a model of those is not deleted before it is stored."""
    rng = random.Random(seed)
    events = []
    for number in range(first, first + count):
        kind = rng.choice(BAD) if rng.random() < share else rng.choice(["add", "add", "add", "ignore"])
        events.append((f"stream-{rng.randrange(STREAMS)}", b"{torn" if kind == "torn" else envelope(number, kind)))
    return events


def kind_of(record: Message) -> str:
    value = record.value()
    return "torn" if value.startswith(b"{torn") else str(orjson.loads(value)["type"])


def split(kit: Kit) -> tuple[dict[str, Any], set[str]]:
    """What the models must be, and the coordinates of what must wait."""
    free: list[Message] = []
    waiting: set[str] = set()
    for partition, records in read_log(kit.bootstrap, kit.cluster.topic(kit.topic)).items():
        blocked: set[bytes] = set()
        for record in records:
            kind = kind_of(record)
            if kind in BAD or (record.key() in blocked and kind != "ignore"):
                blocked.add(record.key())
                waiting.add(f"{kit.topic}[{partition}]@{record.offset()}")
            else:
                free.append(record)
    return folded(free, kit.projection), waiting


def letters(kit: Kit) -> DeadLetters:
    return DeadLetters(kit.kafka, "tally", "tally.v1", kit.group)


def written(kit: Kit) -> Counter[str]:
    """How often each of this fold's letters is in the topic, as it is there."""
    topic = kit.cluster.topic(topic_of("tally"))
    records = [record for records in read_log(kit.bootstrap, topic).values() for record in records]
    found = [said(record, kit.group) for record in records]
    return Counter(one.where for one in found if isinstance(one, Letter))


@pytest.mark.slow
def test_killed_at_random_moments_every_event_that_cannot_be_folded_is_kept_once_and_later_folded_in_order(
    new_kit: NewKit,
) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, poisoned(30_000, 0.002))
    rng = random.Random(3)
    for _ in range(5):
        with kit.process("--checkpoint-events", "200", env=DEAD_LETTER) as process:
            seen = kit.lag()
            until("some to be folded", lambda: kit.lag() < seen - rng.randrange(500, 4000) or not kit.lag())  # noqa: B023
            process.kill()
    with kit.process(env=DEAD_LETTER):
        until("all to be folded", lambda: kit.lag() == 0)
        models, waiting = split(kit)
        until("the models to be read as they are", lambda: kit.models() == models)
        # With the code as it is, nothing comes of it.
        assert "failed again" in kit.refold("dead-letters", "retry", "--all", ok=9)
    assert {one.letter.where for one in letters(kit).waiting()} == waiting
    assert set(written(kit)) == waiting
    # Other code, by which all but what is no event can be folded.
    with kit.process("--adopt", env=DEAD_LETTER, projection=MENDED):
        until("it to be there", lambda: kit.cluster.members(kit.group))
        kit.refold("dead-letters", "retry", "--all", ok=9, projection=MENDED)
        torn = [one.letter.where for one in letters(kit).waiting() if one.kind == "undecodable"]
        kit.refold("dead-letters", "drop", *torn, "--yes", projection=MENDED)
        assert letters(kit).waiting() == []
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    good = [record for records in log.values() for record in records if kind_of(record) != "torn"]
    assert kit.models() == folded(good, Mended())


def check_deaths(new_kit: NewKit, seed: int, at: int, *, before: bool, later: int) -> None:
    kit = new_kit(partitions=2, settings=FoldSettings(on_error="dead-letter", session_timeout_s=2))
    kit = dataclasses.replace(kit, state_dir=kit.state_dir / uuid.uuid4().hex)
    produce(kit.bootstrap, kit.topic, poisoned(40, 0.15, seed))
    job = Job.of(kit, "letters")
    # Dying while letters are written
    DEATHS["writing"] += die(job, at, before=before)
    until("the group is empty", lambda: not kit.cluster.members(kit.group))
    job.run()
    models, waiting = split(kit)
    assert kit.models() == models
    assert {one.letter.where for one in letters(kit).waiting()} == waiting
    assert written(kit) == Counter(waiting), "each is there once, and none twice"
    # Dying while some are folded again, and others are dropped
    there = letters(kit).waiting()
    torn = [one for one in there if one.kind == "undecodable"]
    if torn:
        letters(kit).post("drop", torn)
    if there:
        letters(kit).post("retry", there)
    mended = Job.of(kit, "mended")
    DEATHS["retrying"] += die(mended, later, before=before)
    until("the group is empty", lambda: not kit.cluster.members(kit.group))
    mended.run()
    assert letters(kit).waiting() == []
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    good = [record for records in log.values() for record in records if kind_of(record) != "torn"]
    assert kit.models() == folded(good, Mended())
    assert written(kit) == Counter(waiting)


DEATHS: Counter[str] = Counter()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("make", "examples"), [("new_kit", 14), ("pg_kit", 6)])
def test_it_may_die_at_any_step_of_keeping_and_folding_again(
    request: pytest.FixtureRequest, make: str, examples: int
) -> None:
    DEATHS.clear()
    examples = int(os.environ.get("REFOLD_CRASH_EXAMPLES", examples))
    once = partial(check_deaths, request.getfixturevalue(make))

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 1000), at=st.integers(1, 20), before=st.booleans(), later=st.integers(1, 12))
    def check(seed: int, at: int, before: bool, later: int) -> None:
        once(seed, at, before=before, later=later)

    check()
    assert DEATHS["writing"] > 2, DEATHS
    assert DEATHS["retrying"] > 2, DEATHS


def test_a_rebuild_that_keeps_or_skips_events_is_completed_and_is_no_plain_success(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, poisoned(400, 0.03))
    error = kit.refold("rebuild", "--in-place", "--yes", "--on-error", "dead-letter", ok=9)
    _, waiting = split(kit)
    assert f"is completed with {len(waiting)} dead letters: these events are not in their models" in error
    assert "rebuild.completed_with_dead_letters" in error
    status = orjson.loads(kit.refold("status", "--json"))
    assert sum(one["dead_letters"] for one in status["partitions"]) == len(waiting)
    assert status["rebuild"]["dead_letters"] == len(waiting)
    bad = sum(
        kind_of(record) in BAD
        for records in read_log(kit.bootstrap, kit.cluster.topic(kit.topic)).values()
        for record in records
    )
    error = kit.refold("rebuild", "--in-place", "--yes", "--on-error", "skip", ok=9)
    assert f"is completed with {bad} skipped" in error
    # By default it halts, as it did.
    assert "is no event" in kit.refold("rebuild", "--in-place", "--yes", ok=1)


def test_beside_the_live_version_too_and_readers_are_switched(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, poisoned(400, 0.03))
    kit.refold("rebuild", "--in-place", "--yes", "--on-error", "dead-letter", ok=9)
    error = kit.refold("rebuild", "--beside", "--yes", "--on-error", "dead-letter", ok=9)
    _, waiting = split(kit)
    assert f"is completed with {len(waiting)} dead letters" in error
    record = orjson.loads(kit.refold("status", "--json"))["registry"]
    assert record["active"] == "tally.v1-2"
    assert record["rebuild"]["dead_letters"] == len(waiting)
    # Each generation has its own.
    assert len(kit.refold("dead-letters", "list", "--json", "--limit", "1000").splitlines()) == len(waiting)
    first = kit.refold("dead-letters", "list", "--json", "--limit", "1000", "--generation", "tally.v1")
    assert len(first.splitlines()) == len(waiting)


def test_what_may_pass_is_tried_again_before_anything_else_becomes_of_it(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=Passing(), settings=FoldSettings(on_error="dead-letter"))
    events = [("a", envelope(0)), ("a", envelope(1, "fail", times=2)), ("b", envelope(2, "fail", times=99))]
    produce(kit.bootstrap, kit.topic, [*events, ("a", envelope(3)), ("b", envelope(4))])
    kit.fold_all()
    assert kit.models()["a"]["count"] == 3
    assert "b" not in kit.models()
    assert [one.letter.offset for one in letters(kit).waiting()] == [2, 4]
    assert isinstance(kit.projection, Passing)
    assert kit.projection.times[2] == 5
    # Where it is to halt in the end, it halts at that event.
    halting = dataclasses.replace(kit, state_dir=kit.state_dir / "other", group=f"{kit.group}-other")
    halting.settings, halting.projection = FoldSettings(), Passing()
    with pytest.raises(ProjectionError, match=r"\[0\]@2: the projection failed.*TransientError"):
        halting.fold_all()
    assert halting.models()["a"]["count"] == 2


def test_the_commands_say_what_waits_and_why(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    events = [("a", envelope(0)), ("a", envelope(1, "fail")), ("b", b"{torn"), ("a", envelope(2)), ("c", envelope(3))]
    produce(kit.bootstrap, kit.topic, events)
    assert "No dead letters wait in refold.tally.dead-letters." in kit.refold("dead-letters")
    kit.refold("rebuild", "--in-place", "--yes", "--on-error", "dead-letter", ok=9)
    lines = kit.refold("dead-letters", "list", COLUMNS="200").splitlines()
    assert lines[0].split() == ["event", "time", "kind", "type", "model", "behind", "it", "error"]
    assert "ValueError: cannot fold e1 (support.py:73 in apply_to_model)" in lines[1]
    assert lines[1].split()[3:7] == ["failed", "fail", "a", "1"]
    assert "undecodable" in lines[2]
    assert "the record is no event: the value is not JSON" in lines[2]
    assert lines[3].startswith(f"3 wait, of 2 models, of {kit.topic}.")
    shown = kit.refold("dead-letters", "show", f"{kit.topic}[0]@1")
    assert '"type": "fail"' in shown
    assert "failed, tried 1 time" in shown
    shown = orjson.loads(kit.refold("dead-letters", "show", "0@2", "--json"))
    assert (shown["value"], shown["kind"], shown["stream"], shown["model"]) == ("{torn", "undecodable", "b", None)
    assert "names no event" in kit.refold("dead-letters", "show", "nonsense", ok=2)
    assert "No dead letter waits of 0@17" in kit.refold("dead-letters", "retry", "0@17", ok=6)
    assert "needs the coordinates of events, --model, or --all" in kit.refold("dead-letters", "retry", ok=2)
    assert "Nobody folds tally.v1" in kit.refold("dead-letters", "retry", "--all", ok=3)
    with kit.process(env=DEAD_LETTER):
        until("it to be there", lambda: kit.cluster.members(kit.group))
        assert "1 failed again" in kit.refold("dead-letters", "retry", "--model", "a", ok=9)
        again = orjson.loads(kit.refold("dead-letters", "show", "0@1", "--json"))
        assert again["tried"] == 2
        told = orjson.loads(kit.refold("dead-letters", "drop", "0@1", "--yes", "--json"))
        assert told == {
            "schema": "refold.dead-letters-answer/1",
            "verb": "drop",
            "asked": 1,
            "folded": 1,
            "failed": 0,
            "dropped": 1,
            "waiting": 1,
            "silent": [],
        }
        assert kit.models()["a"]["count"] == 2
        states = [
            orjson.loads(one)["state"] for one in kit.refold("dead-letters", "list", "--all", "--json").splitlines()
        ]
        assert sorted(states) == ["dropped", "folded", "waiting"]


def test_settings_in_the_file_say_it_for_each_kind_and_a_flag_wins(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(0)), ("b", b"{torn"), ("c", envelope(1, "fail"))])
    (tmp_path / "refold.toml").write_text(
        f'[projections.tally]\nclass = "{TALLY}"\non_error = "halt"\n'
        '[projections.tally.recovery]\nrebuild = { undecodable = "skip", failed = "dead-letter" }\n'
    )
    config = {"REFOLD_CONFIG": str(tmp_path / "refold.toml")}
    error = kit.refold("rebuild", "--in-place", "--yes", projection="tally", ok=9, **config)
    assert "completed with 1 dead letter and 1 skipped" in error
    error = kit.refold("rebuild", "--in-place", "--yes", "--on-error", "halt", projection="tally", ok=1, **config)
    assert "is no event" in error
    (tmp_path / "refold.toml").write_text(
        f'[projections.tally]\nclass = "{TALLY}"\nrecovery = {{ rebuild = "drop" }}\n'
    )
    error = kit.refold("rebuild", "--in-place", "--yes", projection="tally", ok=2, **config)
    assert "[projections.tally] recovery" in error
    assert "'drop'" in error


def test_a_topic_that_cannot_be_written_stops_nothing_before_it_and_loses_nothing(new_kit: NewKit) -> None:
    """While letters are not written, the position does not pass their events."""
    from streams.data.letterbox import Letterbox
    from streams.errors import BrokerUnavailable

    kit = new_kit(partitions=1, settings=FoldSettings(on_error="dead-letter", checkpoint_events=1))
    produce(kit.bootstrap, kit.topic, [("a", envelope(0)), ("b", envelope(1, "fail")), ("a", envelope(2))])
    write = Letterbox.write
    refusals: list[dict[int, int]] = []

    def away(self: Letterbox, what: Any) -> None:
        if len(refusals) < 3:
            refusals.append(kit.positions())
            raise BrokerUnavailable("no broker has answered")
        write(self, what)

    Letterbox.write = away  # type: ignore[method-assign]
    try:
        kit.fold_all()
    finally:
        Letterbox.write = write  # type: ignore[method-assign]
    assert refusals == [{0: 1}] * 3
    assert kit.models() == folded(
        [record for record in read_log(kit.bootstrap, kit.cluster.topic(kit.topic))[0] if record.key() == b"a"], Tally()
    )


def test_whoever_opens_a_partition_again_reads_what_he_has_only_just_sent(new_kit: NewKit) -> None:
    """A store that is opened anew, since its disk was full, is not to send what is on its way once more."""
    kit = new_kit(partitions=1)
    events = kit.cluster.topic(kit.topic)
    box = Letterbox(kit.kafka, kit.cluster, f"tally-{kit.group}", kit.group, events)
    letters = [
        Letter(
            projection="tally",
            generation="tally.v1",
            group=kit.group,
            topic=kit.topic,
            partition=0,
            offset=offset,
            timestamp=1,
            kind="failed",
            error="no",
        )
        for offset in range(3000)
    ]
    try:
        assert box.open(0, 0) == []
        box.send(letters)
        assert [told for told, _ in box.open(0, 0)] == letters
        box.write([])
    finally:
        box.close()
        kit.cluster.delete_topic(box.name)


def test_a_broker_that_is_restarted_while_letters_are_written_has_each_of_them(
    private_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    kit = Kit(private_broker.bootstrap_servers, "restarted", "restarted", tmp_path / "state")
    kit.cluster.create_topic(kit.topic, 3)
    until("the topic is there", lambda: kit.topic in kit.cluster.topics())
    produce(kit.bootstrap, kit.topic, poisoned(500, 0.1))
    with kit.process("--checkpoint-events", "10", env=DEAD_LETTER, projection=SLOW) as process:
        for left in (400, 250):
            until("some to be folded", lambda: kit.lag() < left)  # noqa: B023
            private_broker.kill()
            time.sleep(1)  # it goes on with what it has read, and has letters to write
            private_broker.restart()
        until("all to be folded", lambda: kit.lag() == 0)
        assert process.terminate() == 0, process.output()
    models, waiting = split(kit)
    assert len(waiting) > 50
    assert kit.models() == models
    assert sorted(one.letter.where for one in letters(kit).waiting()) == sorted(waiting)
    assert set(written(kit)) == waiting


@pytest.mark.parametrize("is_folded", [True, False])
async def test_streams_that_are_folded_again_take_their_letters_in(new_kit: NewKit, is_folded: bool) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(on_error="dead-letter"))
    events = [("a", "add"), ("a", "fail"), ("b", "fail"), ("a", "add"), ("b", "add"), ("c", "fail"), ("c", "add")]
    produce(kit.bootstrap, kit.topic, [(key, envelope(number, kind)) for number, (key, kind) in enumerate(events)])
    kit.fold_all()
    letters(kit).post("drop", [one for one in letters(kit).waiting() if one.letter.offset == 5])
    kit.projection = Mended()
    folding = kit.process("--adopt", env=DEAD_LETTER, projection=MENDED) if is_folded else nullcontext()
    with folding:
        if is_folded:
            until("somebody folds", lambda: kit.cluster.members(kit.group))
        else:
            kit.fold_all(adopt=True)
        until("c's to be dropped", lambda: len(letters(kit).waiting()) == 4)
        await kit.coordinator(adopt=True).rebuild(SpecificStreams(["a", "c"]))
        until("that to be told", lambda: [one.letter.offset for one in letters(kit).waiting()] == [2, 4])
        log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))[0]
        good = [record for record in log if record.key() != b"b" and record.offset() != 5]
        assert kit.models() == folded(good, Mended())
        produce(kit.bootstrap, kit.topic, [("a", envelope(8)), ("b", envelope(9))])
        if is_folded:
            until("it to be folded", lambda: kit.models()["a"]["count"] == 4)
        else:
            kit.fold_all(adopt=True)
        assert kit.models()["a"]["count"] == 4
        until("b's to wait", lambda: [one.letter.offset for one in letters(kit).waiting()] == [2, 4, 8])


class Lenient:
    """A policy from outside: what is torn is skipped, and of the rest the user decides."""

    keeps = True

    def __init__(self) -> None:
        self.asked: list[Failure] = []

    def decide(self, failure: Failure) -> Action:
        self.asked.append(failure)
        return "skip" if failure.kind == "undecodable" else "dead-letter"


async def test_a_policy_of_ones_own_decides(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(
        kit.bootstrap, kit.topic, [("a", envelope(0)), ("b", b"{torn"), ("c", envelope(2, "fail")), ("c", envelope(3))]
    )
    policy = Lenient()
    assert isinstance(policy, RecoveryPolicy)
    progress = await kit.coordinator(recovery=policy).rebuild_from_beginning()
    assert (progress.dead_letters, progress.events_skipped, progress.is_whole) == (2, 1, False)
    assert progress.completion_percentage() == 100.0
    (torn, failed) = policy.asked
    assert (torn.offset, torn.event_id, torn.is_rebuild, failed.model_id) == (1, None, True, "c")
    assert failed.error.startswith("ValueError: cannot fold e2")
