"""One look at everything: what is ok, what is not, and the way out of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from streams.data.checkpoint import generation_id
from tests.integration.kit import TALLY, Kit, produce, reset, tally_events, until, wait_for_log
from tests.schemas import check_printed
from tests.support import envelope

NewKit = Callable[..., Kit]


def examined(kit: Kit, ok: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
    """Run `refold doctor` where the projection is configured; give its findings by what was looked at."""
    home = kit.state_dir.parent
    (home / "refold.toml").write_text(
        f'registry = "{kit.registry}"\nstate_dir = "state"\n'
        f'[projections.tally]\nclass = "{TALLY}"\ntopic = "{kit.topic}"\ngroup = "{kit.group}"\n'
    )
    command = [sys.executable, "-m", "streams", "doctor"]
    environment = kit.environment(PYTHONPATH=str(Path(__file__).parents[2]), **variables)
    done = subprocess.run(
        [*command, "--json"], env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ok, done.stdout + done.stderr
    check_printed(done.stdout)
    found = orjson.loads(done.stdout)
    states = [one["state"] for one in found["findings"]]
    assert found["state"] == ("failure" if "failure" in states else "warning" if "warning" in states else "ok")
    assert all(one["advice"] or one["state"] == "ok" or "refold could not" in one["told"] for one in found["findings"])
    worst: dict[str, dict[str, Any]] = {}
    for one in found["findings"]:
        if one["what"] not in worst or worst[one["what"]]["state"] == "ok":
            worst[one["what"]] = one
    return worst


def state(found: dict[str, dict[str, Any]], what: str) -> tuple[str, str]:
    return found[what]["state"], found[what]["told"]


def test_healthy_projection_is_ok_in_all(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2, config={"retention.ms": "-1", "retention.bytes": "-1"})
    produce(kit.bootstrap, kit.topic, tally_events(100))
    before = examined(kit)
    assert state(before, "registry")[0] == "warning"
    assert "it has no generation yet" in state(before, "tally: registry")[1]
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0 and kit.committed())
        found = examined(kit)
        assert live.terminate() == 0
    assert {one["state"] for one in found.values()} == {"ok"}, found
    assert "1 broker of cluster" in state(found, "kafka")[1]
    assert "Stable, 1 members, lag 0 records" in state(found, "tally.v1: group")[1]
    assert "complete, and kept for ever" in state(found, "tally: history")[1]
    assert f"{len(kit.models())} models" in state(found, "tally.v1: state")[1]
    idle = examined(kit, REFOLD_TYPO="1")
    assert state(idle, "tally.v1: group")[0] == "warning"
    assert "REFOLD_TYPO" in state(idle, "settings")[1]


def test_what_is_wrong_is_found_and_the_way_out_is_named(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    with kit.process() as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0 and kit.committed())
        assert live.terminate() == 0
    assert "keeps events for" in state(examined(kit), "tally: history")[1]
    reset(kit, {0: 7})
    kit.delete_before(1, 3)
    found = examined(kit, ok=1)
    assert state(found, "tally.v1: offsets") == ("failure", f"somebody's tool set {kit.topic}[0]@7")
    assert "reset-offsets tally --to-earliest" in found["tally.v1: offsets"]["advice"]
    assert state(found, "tally: history") == ("warning", "3 offsets are gone, of partition 1")
    current = kit.state_dir / generation_id("tally", 1) / "current.json"
    current.write_text("{oops")
    assert state(examined(kit, ok=1), "tally.v1: state")[0] == "failure"
    kit.cluster.delete_topic(kit.topic)
    until("it to be gone", lambda: kit.topic not in kit.cluster.topics())
    kit.cluster.create_topic(kit.topic, 2)
    until("it to be back", lambda: kit.cluster.topics().get(kit.topic) == 2)
    assert "was deleted and made again" in state(examined(kit, ok=1), "tally: topic")[1]


def test_dead_letters_that_wait_are_told(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [*tally_events(50), ("poison", envelope(1, "fail")), ("poison", envelope(2))])
    with kit.process("--on-error", "dead-letter") as live:
        until("all to be folded", lambda: kit.lag() == 0 and kit.committed())
        assert live.terminate() == 0
    found = examined(kit)
    assert state(found, "tally: dead letters") == ("ok", "topic 'refold.tally.dead-letters' is there")
    assert state(found, "tally.v1: dead letters") == ("warning", "2 events wait to be folded")
    assert "refold dead-letters tally list" in found["tally.v1: dead letters"]["advice"]


def test_broker_that_is_away_is_one_failure_and_the_disk_is_looked_at_all_the_same(new_kit: NewKit) -> None:
    kit = new_kit()
    found = examined(kit, ok=7, REFOLD_BOOTSTRAP_SERVERS="127.0.0.1:1", REFOLD_REQUEST_TIMEOUT_S="1")
    assert [what for what, one in found.items() if one["state"] == "failure"] == ["kafka"]
    assert state(found, "disk")[0] == "ok"
    assert Path(state(found, "disk")[1].split("(")[1].rstrip(")")).is_absolute()
