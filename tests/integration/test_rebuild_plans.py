"""A rebuild is told before it begins; a plan that was written down is made in the same world or not at all."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.kit import TALLY, Kit, produce, reset, tally_events, until, wait_for_log

NewKit = Callable[..., Kit]


def planned(kit: Kit, *words: str, **options: Any) -> Any:
    return orjson.loads(kit.refold("rebuild", "--dry-run", "--json", *words, **options))


def apply(kit: Kit, path: Path, ok: int = 0) -> str:
    """Run `refold apply`: all that it is to know is in the file."""
    done = subprocess.run(
        [sys.executable, "-m", "streams", "apply", str(path)],
        env=kit.environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == ok, done.stderr
    return done.stdout if ok == 0 else done.stderr


async def test_plan_tells_offsets_events_disk_time_and_what_readers_see(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(600))
    first = planned(kit)["worlds"][0]
    assert (first["manner"], first["active"], first["models"], first["events_per_second"]) == (
        "in-place",
        None,
        None,
        None,
    )
    await kit.coordinator().rebuild_from_beginning()
    kit.claim()
    build, positions = kit.build, kit.positions()
    world = planned(kit)["worlds"][0]
    ends = kit.ends()
    assert world["starts"] == {"0": 0, "1": 0}
    assert world["ends"] == {str(number): end for number, end in ends.items()}
    assert world["committed"] == {str(number): position for number, position in positions.items()}
    assert (world["build"], world["models"]) == (build, len(kit.models()))
    assert world["models_bytes"] > 1000
    assert world["free_bytes"] > 1 << 20
    assert world["events_per_second"] > 0
    text = kit.refold("rebuild", "--dry-run")
    for part in (
        f"up to 600, by partition from offset 0: 0 to {ends[0]}, 1: 0 to {ends[1]}",
        f"build {build} with {len(kit.models())} models; they are replaced",
        "more until the old models are removed",
        "events/s of the last rebuild",
        "the models as far as they are rebuilt",
        f"{kit.group}: nobody is in it",
    ):
        assert part in text, text
    assert kit.build == build, "a dry run has changed something"


def test_plan_tells_what_is_gone_and_is_refused(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.delete_before(0, 30)
    said = kit.refold("rebuild", "--dry-run", ok=4)
    assert "lacks its first 30 offsets" in said
    text = kit.refold("rebuild", "--dry-run", "--allow-incomplete")
    assert "gone     30 offsets that retention has deleted, by partition the first 0: 30" in text
    assert "up to 70" in text


def test_plan_beside_names_who_folds_and_the_rate_is_the_registrys(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(400))
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0)
        kit.refold("rebuild", "--yes")
        world = planned(kit)["worlds"][0]
        assert (world["manner"], world["active"]) == ("beside", "tally.v1-2")
        assert world["members"]
        elsewhere = planned(dataclasses.replace(kit, state_dir=tmp_path / "elsewhere"))["worlds"][0]
        assert (elsewhere["models"], elsewhere["models_bytes"]) == (None, None)
        assert elsewhere["events_per_second"] > 0
        said = kit.refold("rebuild", "--in-place", "--dry-run", ok=3)
        assert f"process {live.process.pid}" in said


def test_plan_is_applied_as_it_was_written(new_kit: NewKit, tmp_path: Path) -> None:
    kit, path = new_kit(), tmp_path / "plan.json"
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    build = kit.build
    text = kit.refold("rebuild", "--plan-out", str(path), REFOLD_KAFKA='{"client.rack": "s3cret"}')
    assert "they are replaced" in text
    assert kit.build == build
    assert "s3cret" not in path.read_text()
    assert "300 events into tally" in apply(kit, path)
    assert kit.build == build + 1
    assert kit.check() == 300
    # What it was to do is done: the world is another now.
    assert "generation" in apply(kit, path, ok=8) or "is at" in apply(kit, path, ok=8)


def stale_group(kit: Kit) -> None:
    reset(kit, {0: 0, 1: 0})


def stale_history(kit: Kit) -> None:
    kit.delete_before(0, 5)


def stale_topic(kit: Kit) -> None:
    partitions = kit.cluster.topic(kit.topic).partitions
    kit.cluster.delete_topic(kit.topic)
    until("it to be gone", lambda: kit.topic not in kit.cluster.topics())
    kit.cluster.create_topic(kit.topic, partitions)
    until("it to be back", lambda: kit.cluster.topics().get(kit.topic) == partitions)
    produce(kit.bootstrap, kit.topic, tally_events(300))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (stale_group, "is at 0@0, 1@0"),
        (stale_history, "[0] began at 0, and begins at 5"),
        (stale_topic, "was deleted and made again"),
    ],
)
def test_plan_of_a_world_that_is_no_more_is_refused(
    new_kit: NewKit, tmp_path: Path, change: Callable[[Kit], None], told: str
) -> None:
    kit, path = new_kit(partitions=2), tmp_path / "plan.json"
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    build, models = kit.build, kit.models()
    kit.refold("rebuild", "--plan-out", str(path))
    change(kit)
    said = apply(kit, path, ok=8)
    assert told in said, said
    assert (kit.build, kit.models()) == (build, models)


def test_plan_is_refused_where_somebody_folds_by_now(new_kit: NewKit, tmp_path: Path) -> None:
    kit, path = new_kit(), tmp_path / "plan.json"
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    kit.refold("rebuild", "--plan-out", str(path))
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("it to be in the group", lambda: kit.cluster.members(kit.group))
        said = apply(kit, path, ok=8)
    assert "it was to be made in-place, and would be beside" in said
    assert "had no members, and now: refold on 127.0.0.1" in said


def test_plan_that_is_old_or_of_other_code_or_none_is_refused(new_kit: NewKit, tmp_path: Path) -> None:
    kit, path = new_kit(), tmp_path / "plan.json"
    produce(kit.bootstrap, kit.topic, tally_events(30))
    kit.fold_all()
    kit.refold("rebuild", "--plan-out", str(path))
    plan = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps(plan | {"expires_at": "2026-01-01T00:00:00Z"}))
    assert "--plan-out" in apply(kit, path, ok=8)
    world = plan["worlds"][0] | {"fingerprint": "other"}
    path.write_bytes(orjson.dumps(plan | {"worlds": [world]}))
    assert "the projection's code has changed" in apply(kit, path, ok=8)
    for text in (b"{oops", b'{"schema":"refold.plan/99"}'):
        path.write_bytes(text)
        assert "is no plan of this version" in apply(kit, path, ok=2)
    path.unlink()
    assert "No such file" in apply(kit, path, ok=2)


def test_several_are_planned_and_applied_together(new_kit: NewKit, tmp_path: Path) -> None:
    kit, path = new_kit(), tmp_path / "plan.json"
    produce(kit.bootstrap, kit.topic, tally_events(100))
    (tmp_path / "refold.toml").write_text(
        f'bootstrap_servers = "{kit.bootstrap}"\nregistry = "{kit.registry}"\nstate_dir = "state"\n'
        f'[projections.one]\nclass = "{TALLY}"\ntopic = "{kit.topic}"\n'
        f'[projections.two]\nclass = "tests.integration.several:Alone"\ntopic = "{kit.topic}"\n'
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "streams", *words],
            env=kit.environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    done = run("rebuild", "one", "two", "--plan-out", str(path))
    assert done.returncode == 0, done.stderr
    assert "This rebuilds 2 projections, 1 at once." in done.stdout
    done = run("apply", str(path))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
