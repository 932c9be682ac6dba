"""What the commands show on a terminal, and how they answer on it."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.integration.kit import TALLY, Kit, produce, tally_events, until, wait_for_log
from tests.screen import Screen, on_screen

NewKit = Callable[..., Kit]


@contextmanager
def shown(
    kit: Kit,
    *arguments: str,
    command: str = "run",
    projection: str = TALLY,
    columns: int = 80,
    session_s: float | None = None,
) -> Iterator[Screen]:
    environment = kit.environment(**({} if session_s is None else {"REFOLD_SESSION_TIMEOUT_S": str(session_s)}))
    words = kit.command(*arguments, command=command, projection=projection)
    with on_screen(words, columns=columns, environment=environment) as screen:
        yield screen


@pytest.mark.parametrize("columns", [80, 110])
def test_run_shows_how_far_the_group_is(new_kit: NewKit, columns: int) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(12_345))
    with shown(kit, "-v", columns=columns) as screen:
        screen.wait_for("100.0 %", "12,345 of 12,345", "lag 0 records", "ETA -", "49 models")
        text = screen.wait_for("partition position", " all ")  # a screen may be seen while it is drawn
        assert re.search(r"^━+ +100\.0 %  12,345 of 12,345$", text, re.MULTILINE)  # one line, not broken
        assert re.search(r"^partition position +end lag models last event +owner$", text, re.MULTILINE)
        assert re.search(r"^ +all +12,345 +12,345 +0 +49$", text, re.MULTILINE)
        produce(kit.bootstrap, kit.topic, tally_events(1000, first=12_345))
        screen.wait_for("13,345 of 13,345", "lag 0 records")
        assert screen.end(signal.SIGINT) == 0
        assert "Stopped after 13,345 events." in screen.text()
        assert "━" not in screen.text()  # the view goes with the command


def test_run_says_that_it_waits_for_a_killed_members_session_and_no_lag_before(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with kit.process(env={"REFOLD_SESSION_TIMEOUT_S": "8"}) as first:
        wait_for_log(first, ['"lag_records": 0'])
        first.kill()
    with shown(kit, session_s=8) as screen:
        screen.wait_for("waiting up to 8 s for the killed member's session to end", str(first.process.pid))
        screen.wait_for("lag 0 records")
        assert screen.end(signal.SIGTERM) == 0
        waiting = [text for text in screen.seen if "waiting up to" in text]
        assert waiting
        assert not any(re.search(r"lag \d", text) for text in waiting)


def test_second_run_shows_the_lag_of_the_whole_group(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(4000))
    with kit.process() as first:
        wait_for_log(first, ['"lag_records": 0'])
        with shown(kit) as second:
            second.wait_for("4,000 of 4,000", "lag 0 records")
            assert second.end(signal.SIGTERM) == 0


def test_halted_partition_is_said_once_on_a_terminal(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [*tally_events(5, first=1), ("stream-1", b"{oops")])
    with shown(kit, columns=110) as screen:
        assert screen.end() == 1
        assert screen.flowing().count("is no event") == 1, screen.text()
        assert "Traceback" not in screen.text()


def test_rebuild_asks_with_what_it_will_do_and_a_no_changes_nothing(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    kit.fold_all()
    build, ends = kit.build, kit.ends()
    with shown(kit, command="rebuild") as screen:
        text = screen.wait_for("Go on? [y/N]")
        assert f"build {build} with 50 models; they are replaced" in screen.flowing()
        assert f"up to 3,000, by partition from offset 0: 0 to {ends[0]:,}, 1: 0 to {ends[1]:,}" in text
        assert "unknown before it runs" in text
        screen.type("n\n")
        assert screen.end() == 2
        assert "Nothing was changed." in screen.text()
    assert kit.build == build
    with shown(kit, command="rebuild") as screen:
        screen.wait_for("Go on? [y/N]")
        screen.type("y\n")
        assert screen.end() == 0
        screen.wait_for("100.0 %", "3,000 of 3,000", "3,000 events into tally in")
        assert "50 models, 28 deleted, 273 declined" in screen.flowing()
    assert kit.build == build + 1
    with shown(kit, command="rebuild") as screen:
        screen.wait_for("events/s of the last rebuild", "Go on? [y/N]")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 130
        assert "interrupted; nothing was changed." in screen.text()
    assert kit.build == build + 1


def test_status_is_watched_with_a_bar_for_the_rebuild(new_kit: NewKit) -> None:
    """A line for each projection, and one projection's own view; each ends by Ctrl-C, with 0."""
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1500))
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0)
        with kit.process("--yes", "--verify", "none", command="rebuild", projection=SLOW_FIXED) as rebuild:
            every = [sys.executable, "-m", "streams", "status", "--watch", "--every-seconds", "0.2"]
            environment = kit.environment(REFOLD_REGISTRY=kit.registry)
            with on_screen(every, columns=120, environment=environment) as screen:
                screen.wait_for("tally", "tally.v1", "tally.v2-2 is replaying", "━")
                screen.until("a percentage", lambda: bool(re.search(r"━+ +[1-9]\d?\.\d %", screen.text())))
                assert screen.end(signal.SIGINT) == 0
            with shown(kit, "--watch", "--every-seconds", "0.2", command="status", columns=100) as screen:
                screen.wait_for("partition position", "lag 0 records", "tally.v2-2 is made beside tally.v1, replaying")
                assert screen.end(signal.SIGINT) == 0
            rebuild.kill()
        kit.refold("cancel")


def test_interrupted_rebuild_says_once_what_is_kept_and_what_goes_on(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(2000, first=1))
    slow = "tests.integration.slow:SlowTally"
    with shown(kit, command="rebuild", projection=slow) as screen:
        screen.until("events", lambda: bool(re.search(r"[1-9]\d* events  ", screen.text())))
        assert screen.end(signal.SIGINT) == 130
        said = screen.flowing()
        assert said.count("was cancelled after") == 1, screen.text()
        assert f"`refold rebuild {slow} --from checkpoint` goes on to the end of the rebuild" in said
        assert "Traceback" not in said
    until("nobody is in the group", lambda: not kit.cluster.members(kit.group))


FIXED = "tests.integration.versions:Fixed"
SLOW_FIXED = "tests.integration.versions:SlowFixed"


def test_a_rebuild_beside_shows_its_plan_and_what_differs_and_asks_twice(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(400, streams=40))
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0)
        with shown(kit, command="rebuild", projection=FIXED, columns=100) as screen:
            text = screen.wait_for("beside tally.v1, which goes on being folded and read", "Go on? [y/N]")
            assert "once you have seen which models differ, and how; tally.v1 is kept for 1:00:00" in screen.flowing()
            assert "up to 400, by partition from offset 0: 0 to" in text
            screen.type("y\n")
            text = screen.wait_for("Switch tally to tally.v2-2? [y/N]")
            assert re.search(r"^4 of 39 models differ: 4 changed, 0 added, 0 removed; compared in", text, re.MULTILINE)
            assert re.search(r"^/fixed +4$", text, re.MULTILINE)
            assert re.search(r"^stream-7 +/fixed = true$", text, re.MULTILINE)
            screen.type("y\n")
            assert screen.end() == 0
            text = screen.text()
            assert "tally.v2-2 is active (4 of 39 models differ" in screen.flowing()
            assert "100.0 %" in text
            assert "Nobody folds tally.v2-2 now: `refold run" in screen.flowing()


def test_several_rebuilds_are_one_table(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    words = kit.command("--yes", "--parallel", "2", command="rebuild", projection="tests.integration.several:Alone")
    at = words.index("--group")
    del words[at : at + 2]
    words.insert(words.index("tests.integration.several:Alone") + 1, "tests.integration.several:Catalog")
    try:
        with on_screen(words, columns=100, environment=kit.environment()) as screen:
            assert screen.end() == 0
            text = screen.text()
            assert re.search(r"^alone +completed +100\.0 % +300 ", text, re.MULTILINE)
            assert re.search(r"^catalog +completed +100\.0 % +300 ", text, re.MULTILINE)
            assert re.search(r"^alone: 300 events in", text, re.MULTILINE)
    finally:
        for name in ("alone", "catalog"):
            kit.cluster.delete_group(f"refold.{name}.v1")
