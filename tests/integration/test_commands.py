"""The commands that look: status, describe, list, get, dump, count; and what every command does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from projections.contract import Event
from streams.cli.main import COMMANDS, app
from tests.integration.kit import TALLY, Kit, Process, produce, tally_events, until, wait_for_log
from tests.schemas import check_printed
from tests.screen import heed_ctrl_c
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]


def refold(kit: Kit, *words: str, ok: int = 0, **environment: str) -> tuple[str, str]:
    """Run a command; give standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "streams", *words],
        env=kit.environment(**{"REFOLD_STATE_DIR": str(kit.state_dir)} | environment),
        cwd=kit.state_dir.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ok, done.stderr
    assert "Traceback" not in done.stderr
    check_printed(done.stdout)
    return done.stdout, done.stderr


def looked(kit: Kit, command: str, *words: str, **environment: str) -> Any:
    """Run a command about the projection, and give its JSON."""
    out, _ = refold(
        kit, command, TALLY, "--topic", kit.topic, "--group", kit.group, "--json", *words, ok=0, **environment
    )
    return orjson.loads(out)


def test_status_tells_position_lag_models_last_event_and_owner_of_each_partition(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(900))
    before = looked(kit, "status")
    assert (before["lag_records"], before["lag_seconds"], before["members"]) == (900, None, [])
    assert [one["position"] for one in before["partitions"]] == [None, None]
    with kit.process() as live:
        wait_for_log(live, ['"lag_records": 0'])
        now = looked(kit, "status")
        pids = {one["owner"]["pid"] for one in now["partitions"]}
    assert pids == {live.process.pid}
    assert (now["lag_records"], now["lag_seconds"], now["models"]) == (0, 0.0, len(kit.models()))
    assert {one["partition"]: one["position"] for one in now["partitions"]} == kit.ends() == kit.positions()
    assert sum(one["events"] for one in now["partitions"]) == 900
    assert "e899" in {one["last_event_id"] for one in now["partitions"]}
    assert all(one["last_event_time"] for one in now["partitions"])


def test_status_of_another_machine_comes_from_the_groups_offsets(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, tally_events(100, first=500))
    time.sleep(0.1)
    elsewhere = looked(kit, "status", REFOLD_STATE_DIR=str(tmp_path / "none"))
    assert (elsewhere["lag_records"], elsewhere["models"]) == (100, len(kit.models()))
    assert elsewhere["lag_seconds"] > 0
    assert elsewhere == looked(kit, "status") | {
        "lag_seconds": elsewhere["lag_seconds"],
        "partitions": elsewhere["partitions"],
    }


def test_status_of_all_is_the_registrys_and_is_watched(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    known: dict[str, Any] = {"REFOLD_REGISTRY": kit.registry}
    assert "The registry knows no projection" in refold(kit, "status", **known)[0]
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with kit.process() as live:
        until("a generation", lambda: kit.lag() == 0 and kit.committed())
        until("a record", lambda: statuses(kit))
        (one,) = statuses(kit)
        assert (one["projection"], one["active"], one["members"], one["lag_records"]) == ("tally", "tally.v1", 1, 0)
        assert one["models"] == len(kit.models())
        assert one["rebuild"] is None
        looks = refold(kit, "status", "--watch", "--json", "--for-seconds", "5", "--every-seconds", "0.3", **known)[0]
        assert len(looks.splitlines()) >= 2
        assert live.terminate() == 0
    text, _ = refold(kit, "status", "--watch", "--for-seconds", "5", "--every-seconds", "0.3", **known)
    assert text.count("tally.v1") >= 2


def test_status_names_partitions_that_nobody_folds(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    with kit.process() as live:
        until("a generation", lambda: kit.lag() == 0 and statuses(kit))
        assert live.terminate() == 0
    admin = AdminClient({"bootstrap.servers": kit.bootstrap})
    admin.create_partitions([NewPartitions(kit.topic, 3)])[kit.topic].result(30)
    until("them to be there", lambda: kit.cluster.topics()[kit.topic] == 3)
    text, _ = refold(kit, "status", "tally", REFOLD_REGISTRY=kit.registry)
    assert "was given partitions 1, 2 since tally.v1 began" in " ".join(text.split())


def statuses(kit: Kit) -> list[Any]:
    found: list[Any] = orjson.loads(refold(kit, "status", "--json", REFOLD_REGISTRY=kit.registry)[0])["projections"]
    return found


def test_projection_whose_code_is_elsewhere_is_told_of_and_its_rebuild_is_paused_and_cancelled(
    new_kit: NewKit, tmp_path: Path
) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(400))
    elsewhere: dict[str, Any] = {"REFOLD_REGISTRY": kit.registry, "REFOLD_STATE_DIR": str(tmp_path / "none")}
    with kit.process() as live:
        until("a generation", lambda: kit.lag() == 0 and statuses(kit))
        assert "no worker" not in refold(kit, "describe", "tally", **elsewhere)[0]
        told = orjson.loads(refold(kit, "status", "tally", "--json", **elsewhere)[0])
        assert (told["lag_records"], told["group"], told["registry"]["active"]) == (0, kit.group, "tally.v1")
        assert refold(kit, "pause", "tally", ok=3, **elsewhere)[1].startswith("refold: No rebuild")
        assert "No projection is called 'taly'" in refold(kit, "status", "taly", ok=6, **elsewhere)[1]
        _, err = refold(kit, "rebuild", "tally", "--topic", kit.topic, "--yes", ok=6, **elsewhere)
        assert "The registry knows 'tally', and its code is not on this machine." in err
        assert live.terminate() == 0


def test_describe_tells_what_the_state_is_of_also_without_a_broker(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(500))
    assert looked(kit, "describe")["state"] is None
    kit.fold_all()
    found = looked(kit, "describe")
    state = found["state"]
    assert (state["code_changed"], state["build"], state["models"]) == (False, 1, len(kit.models()))
    assert state["topic_id"] == kit.cluster.topic(kit.topic).id
    assert state["size_bytes"] > 1000
    assert found["rebuild"] is None
    assert found["directory"] == str(kit.store.directory)
    other = looked(kit, "describe", REFOLD_BOOTSTRAP_SERVERS="127.0.0.1:1", REFOLD_REQUEST_TIMEOUT_S="2")
    assert other["state"] == state
    assert "127.0.0.1:1" in other["error"]
    out, _ = refold(kit, "describe", TALLY, "--group", kit.group)  # the state knows its topic
    assert "unchanged since the state was folded" in out
    assert "build 1 was begun by a run" in out


def test_describe_tells_what_whoever_rebuilds_is_to_know_and_a_plan_goes_by_it(new_kit: NewKit) -> None:
    kit = new_kit()
    words = ("--topic", kit.topic, "--registry", kit.registry)
    told = orjson.loads(refold(kit, "describe", "order-summary", *words, "--json")[0])["rebuild_doc"]
    assert (told["idempotent"], told["depends_on"], told["memory_bytes"]) == (False, [], 400_000_000)
    said = " ".join(refold(kit, "describe", "order-summary", *words)[0].split())
    assert "typically 3.8 s for a million events; 381.5 MiB of memory; depends on: none; prices are in" in said
    produce(kit.bootstrap, kit.topic, tally_events(400))
    text, _ = refold(kit, "rebuild", "order-summary", *words, "--dry-run")
    assert "by what its author says of it; none was measured yet" in text


def test_debug_logs_of_single_modules_tell_the_story_of_a_rebuild(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(400))
    words = ("rebuild", TALLY, "--topic", kit.topic, "--group", kit.group, "--registry", kit.registry, "--yes")
    told = {"REFOLD_LOG": "streams.control=debug,streams.data=debug,streams.data.polling=error"}
    _, err = refold(kit, *words, **told, REFOLD_LOG_FORMAT="json")  # type: ignore[arg-type]
    events = [orjson.loads(line)["event"] for line in err.splitlines() if line.startswith("{")]
    for event in ("rebuild.strategy_selected", "agent.started", "partitions.assigned", "checkpoint.saved"):
        assert event in events, events
    _, err = refold(kit, *words, REFOLD_LOG_FORMAT="json")
    assert "checkpoint.saved" not in err
    for wrong in ("streams.control", "streams.control=loud", "=debug"):
        _, err = refold(kit, "list", REFOLD_LOG=wrong, ok=2)
        assert f"{wrong!r}: write MODULE=LEVEL" in err


def test_describe_tells_of_changed_code_and_names_the_commands(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(50))
    kit.fold_all()
    changed = "tests.integration.slow:SlowTally"  # of the same name
    words = ("describe", changed, "--topic", kit.topic, "--group", kit.group)
    assert orjson.loads(refold(kit, *words, "--json")[0])["state"]["code_changed"] is True
    said = " ".join(refold(kit, *words)[0].split())
    assert f"`refold rebuild {changed}`, or `refold run {changed} --adopt`" in said
    _, err = refold(kit, "run", changed, "--topic", kit.topic, "--group", kit.group, ok=1)
    assert f"`refold rebuild {changed}`" in err
    assert f"`refold run {changed} --adopt`" in err


async def test_last_rebuild_is_told_and_one_that_was_killed_too(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(2000, first=1))
    await kit.coordinator().rebuild_from_beginning()
    told = looked(kit, "describe")["rebuild"]
    assert (told["outcome"], told["events"], told["models"]) == ("completed", 2000, len(kit.models()))
    assert told["events_per_second"] > 0
    slow = "tests.integration.slow:SlowTally"
    with kit.process("--yes", command="rebuild", projection=slow) as rebuild:
        wait_for_log(rebuild, ["partitions.assigned"])
        running = looked(kit, "status")["rebuild"]
        out, _ = refold(kit, "status", TALLY, "--topic", kit.topic, "--group", kit.group)
        assert "running since" in out
        rebuild.kill()
    assert running["outcome"] == "running"
    assert sum(running["targets"].values()) == 2000
    assert looked(kit, "status")["rebuild"]["outcome"] == "died"
    out, _ = refold(kit, "describe", TALLY, "--topic", kit.topic, "--group", kit.group)
    assert "ended without a word, at" in " ".join(out.split())
    build = kit.store.current()
    assert build is not None
    (build.path / "rebuild.json").write_text("{oops")
    assert looked(kit, "describe")["rebuild"] is None  # and the models are there all the same


def test_list_names_what_the_file_the_disk_and_the_cluster_know(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    (kit.state_dir.parent / "refold.toml").write_text(
        f'[projections.mine]\nclass = "{TALLY}"\ntopic = "{kit.topic}"\ngroup = "{kit.group}"\n'
        '[projections.broken]\nclass = "tests.support:Nothing"\n'
    )
    rows = {row["generation"]: row for row in map(orjson.loads, refold(kit, "list", "--json")[0].splitlines())}
    mine = rows["tally.v1"]
    assert (mine["called"], mine["topic"], mine["group"]) == ("mine", kit.topic, kit.group)
    assert (mine["models"], mine["lag"], mine["members"], mine["build"]) == (len(kit.models()), 0, 0, 1)
    assert "no attribute 'Nothing'" in rows["broken"]["error"]
    out, err = refold(kit, "list", REFOLD_BOOTSTRAP_SERVERS="127.0.0.1:1", REFOLD_REQUEST_TIMEOUT_S="2")
    assert "tally.v1 (mine)" in " ".join(out.split())
    assert "groups are not shown" in err


def test_models_are_given_by_id_all_together_and_counted(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300, streams=20))
    kit.fold_all()
    models = kit.models()
    one, other = sorted(models)[:2]
    assert orjson.loads(refold(kit, "get", TALLY, one)[0]) == models[one]
    both = [orjson.loads(line) for line in refold(kit, "get", TALLY, one, other)[0].splitlines()]
    assert both == [{"id": one, "model": models[one]}, {"id": other, "model": models[other]}]
    assert refold(kit, "get", TALLY, one, "--pretty")[0].count("\n") > 3
    out, err = refold(kit, "get", TALLY, one, "nobody", "nothing", ok=6)
    assert len(out.splitlines()) == 1
    assert "no model 'nobody', 'nothing' among its" in err
    lines = [orjson.loads(line) for line in refold(kit, "dump", TALLY)[0].splitlines()]
    assert {line["id"]: line["model"] for line in lines} == models
    assert len(refold(kit, "dump", TALLY, "--limit", "3")[0].splitlines()) == 3
    assert refold(kit, "count", TALLY)[0] == f"{len(models)}\n"
    assert orjson.loads(refold(kit, "count", TALLY, "--json")[0]) == {
        "schema": "refold.count/1",
        "projection": "tally",
        "models": len(models),
    }


def test_query_prints_models_by_what_is_in_them_page_by_page(new_kit: NewKit) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.fold_all()
    models = kit.models()
    wanted = sorted((id_ for id_ in models if models[id_]["sum"] >= 60), key=lambda id_: (-models[id_]["sum"], id_))
    assert len(wanted) > 6
    found: list[str] = []
    cursor: list[str] = []
    while cursor or not found:
        words = ["sum>=60", "id starts_with stream-", "--order-by", "-sum", "--limit", "5", *cursor]
        page = orjson.loads(refold(kit, "query", TALLY, *words, "--json")[0])
        assert all(one["model"] == models[one["id"]] for one in page["models"])
        found += [one["id"] for one in page["models"]]
        cursor = ["--after", page["cursor"]] if page["cursor"] else []
        if not cursor:
            break
    assert found == wanted
    out, told = refold(kit, "query", TALLY, "id=stream-7")
    assert orjson.loads(out) == {"id": "stream-7", "model": models["stream-7"]}
    assert "--after" not in told
    out, told = refold(kit, "query", TALLY, "--limit", "1")
    assert "There are more: --after" in told
    assert "is no condition" in refold(kit, "query", TALLY, "sum ~ 3", ok=2)[1]


@pytest.mark.parametrize("command", ["get", "dump", "count"])
def test_reading_without_state_names_the_whole_path(new_kit: NewKit, command: str) -> None:
    kit = new_kit()
    out, err = refold(kit, command, TALLY, *(["x"] if command == "get" else []), ok=6)
    assert (out, f"{kit.store.directory} holds no read models yet" in err) == ("", True)
    assert len(err.splitlines()) == 1


def test_output_that_nobody_reads_to_its_end_is_no_error(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(9000, streams=5000))
    kit.fold_all()
    process = subprocess.Popen(
        [sys.executable, "-m", "streams", "dump", TALLY, "--state-dir", str(kit.state_dir)],
        env=kit.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'{"id":')
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


# Every command


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_says_of_each_command_what_the_command_says(command: str) -> None:
    function = app[command].default_command
    assert function is not None
    assert (function.__doc__ or "").splitlines()[0] == COMMANDS[command]


def test_help_and_version_load_no_kafka_and_no_store() -> None:
    for words in (["--help"], ["help"], ["-V"], ["--version"]):
        script = (
            "import sys\nsys.argv[1:] = " + repr(words) + "\n"
            "from streams.__main__ import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "print([name for name in ('confluent_kafka', 'rocksdict', 'pydantic') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    for flag in ("-V", "--version"):
        done = subprocess.run(
            [sys.executable, "-m", "streams", flag], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == f"{version('refold')}\n"


def test_help_command_is_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (["help", "get"], ["get", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "streams", *words], capture_output=True, text=True, timeout=60, check=True
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "--pretty" in said[0]


def test_completion_knows_the_commands() -> None:
    script = app.generate_completion(shell="bash")
    assert all(command in script for command in COMMANDS)


def test_early_ctrl_c_is_silent(tmp_path: Path) -> None:
    # At many moments of the start, most of them within the imports.
    for after_s in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-m", "streams", "run", TALLY, "--topic", "t"],
            env={**os.environ, "REFOLD_BOOTSTRAP_SERVERS": "127.0.0.1:1", "REFOLD_REQUEST_TIMEOUT_S": "5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )
        command_line = Path(f"/proc/{process.pid}/cmdline")
        until("Python runs", partial(_is_python, command_line))
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        started = b'streams/__main__.py"' in err and b"in main\n" in err  # before that, nobody can silence Python
        assert not started or b"Traceback" not in err, err.decode()
        assert out == b""


def _is_python(command_line: Path) -> bool:
    return b"streams" in command_line.read_bytes()


def test_variable_that_nobody_reads_is_warned_of(new_kit: NewKit) -> None:
    kit = new_kit()
    _, err = refold(kit, "count", TALLY, ok=6, REFOLD_STATEDIR="x")
    assert "REFOLD_STATEDIR (did you mean 'REFOLD_STATE_DIR'?)" in err


def ends_with(process: Process, code: int, text: str) -> None:
    assert process.wait() == code
    assert process.output().count(text) == 1, process.output()


def test_rebuild_that_fails_says_so_once(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [*tally_events(5, first=1), ("stream-1", b"{oops")])
    with kit.process("--yes", command="rebuild") as process:
        ends_with(process, 1, "is no event")


class Traced(Tally):
    """Keeps a header of the last record."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = super().apply_to_model(model, event)
        if model is not None:
            model["trace"] = (event.header("trace") or b"").decode()
        return model


def test_tombstones_and_headers_of_a_real_topic(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    producer = Producer({"bootstrap.servers": kit.bootstrap})
    for key, value in (("a", envelope(0)), ("b", envelope(1)), ("a", None)):
        producer.produce(kit.topic, key=key, value=value, headers=[("trace", f"of {key}".encode())])
    assert producer.flush(30) == 0
    traced = "tests.integration.test_commands:Traced"
    words = ("--topic", kit.topic, "--group", kit.group, "--yes")
    _, err = refold(kit, "rebuild", traced, *words, ok=1)
    assert "[0]@2 is no event: the value is null" in err
    assert "--tombstones skip, or delete-model" in err
    out, _ = refold(kit, "rebuild", traced, *words, "--tombstones", "skip")
    assert "2 models, 0 deleted, 1 declined" in out
    out, _ = refold(kit, "rebuild", traced, *words, REFOLD_TOMBSTONES="delete-model")
    assert "1 models, 1 deleted, 0 declined" in out
    assert orjson.loads(refold(kit, "get", traced, "b")[0])["trace"] == "of b"
    _, err = refold(kit, "run", traced, *words[:-1], "--tombstones", "skip", ok=1)  # another fold than the state's
    assert "tombstones='delete-model'" in err
    assert "tombstones='skip'" in err
