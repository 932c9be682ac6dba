"""Two generations compared while both are folded: at one barrier, exactly, and what differs is told as it is."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streams.adapters.postgres.stores import Postgres
from streams.control.compare import Report
from streams.control.local_side import LocalSide
from streams.control.verify import last_report, verify
from streams.data.cut import Cut
from streams.data.runner import ThreadRunner
from streams.errors import NotReady, ProjectionError, StoreLocked
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic, until
from tests.integration.versions import Expecting, Fixed, Halting, Impure
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]


def beside(kit: Kit, projection: Tally) -> Kit:
    """The same topic, folded by another generation."""
    kind = dataclasses.replace(kit.kind, schema=f"{kit.kind.schema}_2") if isinstance(kit.kind, Postgres) else kit.kind
    return dataclasses.replace(
        kit, projection=projection, group=f"{kit.group}-2", state_dir=kit.state_dir.parent / "beside", kind=kind
    )


@contextmanager
def folding(*kits: Kit) -> Iterator[None]:
    """Fold each of them, until the end of the block."""
    with ExitStack() as stack:
        for kit in kits:
            runner = ThreadRunner(stack.enter_context(kit.live()).job)
            runner.start()
            stack.callback(runner.result)
            stack.callback(runner.stop)
            until("all partitions to be open", partial(all_open, kit))
        yield


def is_beyond(kit: Kit, report: Report) -> bool:
    return all(kit.positions()[number] > position for number, position in report.positions.items())


def all_open(kit: Kit) -> bool:
    return kit.store.current() is not None and len(kit.positions()) == 4


def side(kit: Kit) -> LocalSide:
    build = kit.store.current()
    assert build is not None
    return LocalSide(generation=f"{kit.group}", build=build)


def compared(kit: Kit, other: Kit, **options: Any) -> Report:
    return verify(side(kit), side(other), wait_s=30, **options)


def test_two_folds_of_the_same_events_are_identical_while_events_come_in(new_kit: NewKit) -> None:
    kit = new_kit()
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=300))
    with folding(kit, other), traffic(kit, 2000):
        until("both to have folded", lambda: kit.positions() and other.positions())
        reports = []
        for _ in range(5):
            reports.append(compared(kit, other))
            assert reports[-1].summary.is_identical, reports[-1]
            assert reports[-1].summary.models_before == reports[-1].summary.models_after > 0
            for one in (kit, other):
                until("folding to go on", partial(is_beyond, one, reports[-1]))
        sums = [sum(report.positions.values()) for report in reports]
        assert sums == sorted(set(sums))
    assert kit.check() == kit.check() >= sum(reports[-1].positions.values())
    assert other.check() > 0
    assert not list(kit.store.directory.glob("cuts/*"))
    assert last_report(other.store.directory) == reports[-1]


def test_a_fix_is_reported_as_exactly_the_models_that_it_changes(new_kit: NewKit) -> None:
    kit = new_kit()
    other = beside(kit, Fixed())
    produce(kit.bootstrap, kit.topic, tally_events(4000, streams=500))
    with folding(kit, other), traffic(kit, 4000):
        until("both to have folded", lambda: sum(other.positions().values()) >= 4000 <= sum(kit.positions().values()))
        report = compared(kit, other, validate=Expecting(), shown=1000)
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    models: dict[str, Any] = {}
    for number, position in report.positions.items():
        models |= folded([record for record in log[number] if record.offset() < position])
    truth = {model_id for model_id in models if model_id.endswith("7")}
    assert {one.id for one in report.differences} == truth
    assert report.summary.models_before == report.summary.models_after == len(models)
    assert 40 < report.summary.changed == len(truth) <= 50  # some are deleted by an event just then
    assert (report.summary.added, report.summary.removed, report.summary.unexpected) == (0, 0, 0)
    assert report.summary.fields == {"/fixed": len(truth)}
    assert all(one.kind == "changed" and one.expected for one in report.differences)
    assert [(change.path, change.after) for change in report.differences[0].changes] == [("/fixed", True)]


def test_impure_code_is_caught(new_kit: NewKit) -> None:
    kit = new_kit(projection=Impure())
    other = beside(kit, Impure())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.fold_all()
    other.fold_all()
    report = compared(kit, other, validate=Expecting())
    assert not report.summary.is_identical
    assert [one.id for one in report.differences] == ["stream-3"]
    assert report.summary.fields == {"/sum": 1}
    assert report.summary.unexpected == 1


def test_what_is_folded_by_nobody_is_compared_where_it_can_be(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(200), partition=0)
    produce(kit.bootstrap, kit.topic, [("x", envelope(0))], partition=1)
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, [("y", envelope(1))], partition=1)
    other.fold_all()
    report = compared(kit, other)
    assert set(report.positions) == {0}
    assert not report.summary.is_identical
    assert list(report.summary.not_compared) == [1]
    assert f"{kit.group} stays at 1, behind 2: nobody folds it" in report.summary.not_compared[1]


def test_what_is_handed_over_just_then_is_compared_all_the_same(new_kit: NewKit) -> None:
    """Between two who fold a partition there is a moment at which nobody does."""
    kit = new_kit(partitions=4)
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(200))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, tally_events(200, first=200))
    other.fold_all()
    with ThreadPoolExecutor() as pool:
        report = pool.submit(compared, kit, other)
        until("a cut to be asked for", lambda: list(kit.store.directory.glob("cuts/*/0.json")) or report.done())
        with folding(kit):
            assert report.result().summary.is_identical
    assert set(report.result().positions) == {0, 1, 2, 3}


def test_a_partition_that_has_halted_is_said_not_to_be_compared(new_kit: NewKit) -> None:
    kit = new_kit(projection=Halting())
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(400))
    produce(kit.bootstrap, kit.topic, [("odd", envelope(1, "odd")), ("odd", envelope(2))], partition=2)
    reports = []

    def while_folded() -> None:
        with folding(kit, other):
            until("one to have halted", lambda: "odd" in "".join(one.metadata for one in kit.committed().values()))
            until("the other one to be through", lambda: other.lag() == 0)
            with traffic(kit, 400):
                reports.append(compared(kit, other))

    with pytest.raises(ProjectionError, match="odd"):  # by the agent, at its end
        while_folded()
    (report,) = reports
    assert list(report.summary.not_compared) == [2]
    assert "it has halted" in report.summary.not_compared[2]
    assert set(report.positions) == {0, 1, 3}
    assert (report.summary.changed, report.summary.added, report.summary.removed) == (0, 0, 0)


HOLDER = """
import pickle, sys, time
from streams.data.cut import Cut
with Cut.asked(pickle.loads(bytes.fromhex(sys.argv[1]))) as cut:
    while len(cut.held()) < 4:
        time.sleep(0.01)
    print("held", flush=True)
    time.sleep(600)
"""


def test_whoever_asked_may_die_and_folding_goes_on(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(400))
    with folding(kit):
        until("all to be folded", lambda: kit.lag() == 0)
        asking = subprocess.Popen(
            [sys.executable, "-c", HOLDER, pickle.dumps(kit.store.current()).hex()],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"held\n"
            produce(kit.bootstrap, kit.topic, tally_events(400, first=400))
            time.sleep(1)
            assert kit.lag() == 400, "it was folded although it was held"
            os.kill(asking.pid, signal.SIGKILL)
            until("all to be folded", lambda: kit.lag() == 0)
        finally:
            asking.kill()
            asking.communicate()
        # What the dead one left is gone once somebody asks again.
        build = kit.store.current()
        assert build is not None
        with Cut.asked(build) as cut:
            assert [path.name for path in (kit.store.directory / "cuts").iterdir()] == [cut.path.name]
    assert kit.check() == 800


def test_whoever_asks_and_goes_no_further_holds_nobody_up_for_long(
    new_kit: NewKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.data.cutting._HOLD_S", 3.0)
    kit = new_kit()
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(400))
    with folding(kit, other):
        build = kit.store.current()
        assert build is not None
        with Cut.asked(build) as cut:
            until("all to be held", lambda: len(cut.held()) == 4)
            produce(kit.bootstrap, kit.topic, tally_events(400, first=400))
            assert kit.lag() > 0
            until("all to be folded", lambda: kit.lag() == 0)
            cut.set_barrier(dict.fromkeys(range(4), 0))  # too late: it is not heeded
            assert compared(kit, other).summary.is_identical
    assert kit.check() == 800


def test_whoever_folds_may_die_while_held_and_the_next_one_is_cut_exactly(new_kit: NewKit, tmp_path: Path) -> None:
    """The next one holds again before it reads anything, so nobody is ever past the barrier."""
    kit = new_kit()
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    other.fold_all()
    with traffic(kit, 1000), kit.process(env={"REFOLD_SESSION_TIMEOUT_S": "6"}) as first:
        until("something to be folded", lambda: kit.store.current() and len(kit.positions()) == 4)
        build = kit.store.current()
        assert build is not None
        with Cut.asked(build) as cut:
            until("all to be held", lambda: len(cut.held()) == 4)
            held = {number: one.position for number, one in cut.held().items()}
            first.kill()
            barrier = {number: position + 3 for number, position in held.items()}
            cut.set_barrier(barrier)
            with kit.process(env={"REFOLD_SESSION_TIMEOUT_S": "6"}):
                until("all to be copied", lambda: len(cut.copied(barrier)) == 4)
                assert {number: position_of(cut, number, tmp_path) for number in barrier} == barrier


def position_of(cut: Cut, partition: int, scratch: Path) -> int:
    """Where a partition was copied."""
    reader = cut.build.stores.read_cut(partition, cut.copy(partition), scratch / f"scratch-{partition}")
    try:
        return reader.state().position
    finally:
        reader.close()


def test_what_cannot_be_compared_is_refused(new_kit: NewKit) -> None:
    kit, third = new_kit(), new_kit(partitions=2)
    third = dataclasses.replace(third, state_dir=kit.state_dir.parent / "third")
    for one in (kit, third):
        produce(one.bootstrap, one.topic, tally_events(50))
        one.fold_all()
    with pytest.raises(NotReady, match="there are no positions at which both could be compared"):
        compared(kit, third)


def test_validate_that_raises_is_told_with_the_model(new_kit: NewKit) -> None:
    class Raising(Expecting):
        def validate(self, old: Any | None, new: Any | None) -> bool:
            raise KeyError("oops")

    kit = new_kit()
    other = beside(kit, Fixed())
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    other.fold_all()
    with pytest.raises(ProjectionError, match=r"validate raised KeyError: 'oops', at model 'stream-\d*7'") as raised:
        compared(kit, other, validate=Raising())
    assert "in validate" in raised.value.user_traceback
    assert "streams/control" not in raised.value.user_traceback


def test_a_process_that_does_not_answer_is_named_in_time(new_kit: NewKit) -> None:
    kit = new_kit()
    other = beside(kit, Tally())
    produce(kit.bootstrap, kit.topic, tally_events(100))
    other.fold_all()
    with kit.process() as process:
        until("all to be folded", lambda: kit.store.current() and kit.lag() == 0 and len(kit.positions()) == 4)
        process.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreLocked, match="does not answer"):
                verify(side(kit), side(other), wait_s=1)
        finally:
            process.process.send_signal(signal.SIGCONT)
        assert compared(kit, other).summary.is_identical
