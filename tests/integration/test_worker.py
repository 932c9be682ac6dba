"""Several workers are one service: they fold, share, hand over and end, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions
from prometheus_client.parser import text_string_to_metric_families

from projections.fingerprint import fingerprint
from streams.config import WorkerSettings
from streams.data.supervisor import Supervisor
from streams.resolving import load
from streams.serve import worker as service
from tests.integration.fleet import Worker, fleet, soon
from tests.integration.kafka_tool import consumer_groups
from tests.integration.kit import Kit, produce, reset, tally_events, traffic
from tests.integration.versions import Asked, Fixed, Impure, Refactored
from tests.support import envelope

NewKit = Callable[..., Kit]
REFACTORED = "tests.integration.versions:Refactored"
FIXED = "tests.integration.versions:Fixed"
TO_EARLIEST = ("--reset-offsets", "--to-earliest", "--execute")
SEVENS = {f"stream-{ten}7" for ten in ("", *range(1, 10))}
EXPECTING = "tests.integration.versions:Expecting"


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_workers_share_the_partitions_and_the_one_that_ends_hands_its_own_over(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        one, other = workers.start("a"), workers.start("b")
        workers.ready(one, other)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        assert one.terminate() == 0, one.output()
        soon("the other to fold all", lambda: set(workers.owners("tally.v1").values()) == {f"127.0.0.1:{other.port}"})
        workers.ready(other)
        assert other.terminate() == 0, other.output()
        lines = [line for line in (one.output() + other.output()).splitlines() if '"logger"' not in line]
        assert not [line for line in lines if '"level": "error"' in line]


def test_a_worker_that_is_killed_leaves_no_agent_and_another_one_leads(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        started = [workers.start(name, "--agents-per-generation", "2") for name in "ab"]
        workers.ready(*started)
        leader = workers.leader()
        agents = leader.agents()
        assert len(agents) == 2
        leader.kill()
        soon("its agents to be gone", lambda: not any(map(lives, agents)), deadline_s=5)
        (left,) = [one for one in started if one is not leader]
        assert soon("another leader", left.is_leader) < 15
        soon("the other to fold all", lambda: set(workers.owners("tally.v1").values()) == {f"127.0.0.1:{left.port}"})
        workers.ready(left)


def test_a_leader_that_is_stopped_is_replaced_and_leads_no_more_when_it_wakes(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit) as workers:
        started = [workers.start(name) for name in "ab"]
        workers.ready(*started)
        leader = workers.leader()
        (other,) = [one for one in started if one is not leader]
        leader.signal(signal.SIGSTOP)
        try:
            assert soon("another leader", other.is_leader) < 15
        finally:
            leader.signal(signal.SIGCONT)
        soon("the old one to notice", lambda: not leader.is_leader())
        assert other.is_leader()


def test_any_worker_answers_for_all_models_and_a_reader_sees_what_it_has_written(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        one, other = workers.start("a"), workers.start("b")
        workers.ready(one, other)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        workers.ready(one, other)
        expected = workers.expected()
        for worker in (one, other):
            assert workers.models(worker) == expected
            for model_id, model in expected.items():
                status, found = worker.get(f"/v1/projections/tally/models/{model_id}")
                assert (status, found.get("model"), found.get("generation")) == (200, model, "tally.v1"), found
            status, problem = worker.get("/v1/projections/tally/models/nobody")
            assert (status, problem["type"]) == (404, "urn:refold:unknown-model")
        ends = kit.ends()
        produce(kit.bootstrap, kit.topic, [("stream-1", envelope(5000, "add"))], partition=3)
        status, found = one.get(f"/v1/projections/tally/models/stream-1?min_position=3:{ends[3] + 1}")
        assert (status, found["position"]) == (200, ends[3] + 1), found
        status, problem = other.get(f"/v1/projections/tally/models/x?min_position=3:{ends[3] + 2}&wait=0.2")
        assert (status, problem["type"]) == (504, "urn:refold:position-not-reached")


def test_a_list_has_those_models_that_are_asked_for_wherever_they_are(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=9000))
    with fleet(kit, projection="tests.integration.versions:Asked", projection_object=Asked()) as workers:
        one, other = workers.start("a"), workers.start("b")
        workers.ready(one, other)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        workers.ready(one, other)
        expected = workers.expected()

        def asked(worker: Worker, query: str) -> dict[str, Any]:
            found: dict[str, Any] = {}
            cursor = ""
            while True:
                status, page = worker.get(f"/v1/projections/tally/models?{query}{cursor}")
                assert status == 200, page
                found |= {model["id"]: model["model"] for model in page["models"]}
                if page["next"] is None:
                    return found
                cursor = f"&cursor={page['next']}"

        for worker in (one, other):
            assert asked(worker, "limit=1000") == expected
            asking: dict[str, Callable[[Any], bool]] = {
                "q.ends=7&limit=50": lambda model: str(model["digest"]).endswith("7"),
                "q.ends=77&q.least=2": lambda model: str(model["digest"]).endswith("77") and model["sum"] >= 2,
                "q.ends=nothing": lambda _model: False,
            }
            for query, keep in asking.items():
                wanted = {id_: model for id_, model in expected.items() if keep(model)}
                assert asked(worker, query) == wanted, query
            status, problem = worker.get("/v1/projections/tally/models?q.least=many")
            assert (status, problem["type"]) == (400, "urn:refold:bad-request"), problem
            status, problem = worker.get("/v1/projections/tally/models?q.most=1")
            assert "it knows least, ends, fails" in problem["detail"]
            status, problem = worker.get("/v1/projections/tally/models?q.fails=true")
            assert (status, problem["type"]) == (500, "urn:refold:query-failed"), problem
            assert "Asked.matches raised KeyError" in problem["detail"]
        assert one.get("/v1/projections")[1]["tally"]["query"] == ["least", "ends", "fails"]
        # Who has other code passes the question on.
        third = workers.start("c", projections=FIXED)
        workers.listening(third)
        assert asked(third, "q.ends=7") == asked(one, "q.ends=7")
        assert third.get("/v1/projections/tally/models?q.most=1")[0] == 400


def test_a_fix_is_rebuilt_beside_by_new_workers_while_old_ones_serve(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        old = [workers.start("a"), workers.start("b")]
        workers.ready(*old)
        gate = tmp_path / "gate"
        new = workers.start("c", projections="tests.integration.versions:Held", REFOLD_TEST_GATE=str(gate))
        workers.listening(new)
        status, _, done = new.ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
        assert (status, done["wanted"]) == (200, "tally.v2-2"), done
        again, _, problem = new.ask("POST", "/v1/projections/tally/rebuild")
        assert (again, problem.get("error")) == (409, "RebuildRunning"), problem
        gate.touch()
        soon("the switch", lambda: workers.record().active == "tally.v2-2")
        workers.projection_object = Fixed()
        expected = workers.expected()
        for worker in (*old, new):
            soon("the switch to be heard of", lambda: worker.status()["projections"]["tally"]["active"] == "tally.v2-2")  # noqa: B023
            assert workers.models(worker) == expected
        status, _, done = old[0].ask("POST", "/v1/projections/tally/rollback")
        assert (status, done["active"]) == (200, "tally.v1"), done


def test_readers_are_switched_once_every_worker_with_a_part_of_it_answers(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with fleet(kit) as workers:
        old = workers.start("a")
        workers.ready(old)
        workers.leader()
        new = [workers.start(name, projections=FIXED) for name in "bc"]
        workers.listening(*new)
        assert new[0].ask("POST", "/v1/projections/tally/rebuild", {"policy": "report"})[0] == 200
        soon("it to wait for a person", lambda: workers.record().generations[-1].phase == "waiting")
        soon("both to fold it", lambda: len(set(workers.owners("tally.v2-2").values())) == 2)
        (silent, asked) = sorted(new, key=Worker.is_leader)
        silent.signal(signal.SIGSTOP)  # and not its agents: the group knows of nothing
        try:
            assert asked.ask("POST", "/v1/projections/tally/switch", timeout_s=40)[0] == 200

            def why() -> str:
                rebuild = workers.record().rebuild
                assert rebuild is not None
                return rebuild.why

            soon("the record to say why", lambda: "to be served" in why())
            assert f"127.0.0.1:{silent.port}" in why()
            assert workers.record().active == "tally.v1"
        finally:
            silent.signal(signal.SIGCONT)
        soon("the switch", lambda: workers.record().active == "tally.v2-2")
        assert why() == ""


def test_a_replay_keeps_to_a_cache_of_its_own(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    worker = service.Worker([], kit.kafka, load(WorkerSettings, replay_cache_bytes=2 << 20))
    with closing(worker.shelf), kit.live() as agent:
        replaying, live = (worker._runner(agent.job, is_replay) for is_replay in (True, False))
        assert isinstance(replaying, Supervisor)
        assert isinstance(live, Supervisor)
        assert replaying._job.settings.cache_bytes == 2 << 20
        assert live._job.settings.cache_bytes == agent.job.settings.cache_bytes == 256 << 20


def test_code_that_cannot_be_brought_up_says_why_while_the_old_one_serves(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit) as workers:
        old = workers.start("a")
        workers.ready(old)
        expected = workers.expected()
        kit.delete_before(0, 5)
        new = workers.start("b", "--on-change", "rebuild", projections=FIXED)

        def waits_for() -> str:
            return str(new.status()["projections"]["tally"]["waits_for"])

        soon("it to listen", lambda: "worker.listens" in new.output())
        soon("it to say why", lambda: "could not be brought up: History is incomplete" in waits_for())
        assert workers.models(new) == expected
        assert [one.id for one in workers.record().generations] == ["tally.v1"]


def test_code_that_reads_what_is_in_no_event_is_not_switched_to(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with fleet(kit, projection="tests.integration.versions:Impure", projection_object=Impure()) as workers:
        one, other = workers.start("a"), workers.start("b")
        workers.ready(one, other)
        assert one.ask("POST", "/v1/projections/tally/rebuild", {"policy": "identical"})[0] == 200
        soon("it to wait for a person", lambda: workers.record().generations[-1].phase == "waiting")
        status, report = other.get("/v1/projections/tally/report")
        assert status == 200
        assert [found["id"] for found in report["differences"]] == ["stream-3"]
        assert workers.record().active == "tally.v1"
        assert "1 of " in workers.record().rebuild.why  # type: ignore[union-attr]
        assert other.ask("POST", "/v1/projections/tally/cancel")[0] == 200
        soon("nothing of it to be left", lambda: len(workers.record().generations) == 1)


def test_a_projection_is_seen_to_by_one_fleet(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        other = workers.start("b", namespace=f"{kit.topic}-other")
        soon("it to say why not", lambda: "one namespace" in other.output())
        assert "one namespace" in other.status()["projections"]["tally"]["error"]
        assert other.get("/readyz")[0] == 503
        assert workers.record().fleet == f"refold.{kit.topic}.workers"
        assert one.terminate() == 0
        workers.ready(other)
        assert workers.record().fleet == f"refold.{kit.topic}-other.workers"


def test_changed_code_is_brought_up_asks_or_is_adopted_and_what_was_replaced_does_not_come_back(
    new_kit: NewKit,
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with fleet(kit) as workers:
        old = workers.start("a")
        workers.ready(old)
        asking = workers.start("b", projections=FIXED)
        soon("the new code to wait", lambda: workers.record().waiting is not None)
        # In a rolling update no other worker is to go before this one's code is active.
        assert "this worker's code is not active yet" in str(asking.get("/readyz"))
        assert workers.models(asking) == workers.expected()
        assert asking.terminate() == 0, asking.output()
        made = workers.start("c", "--on-change", "rebuild", projections=FIXED)
        running = soon("the new code to be brought up", lambda: workers.record().running is not None)
        assert running < 30
        soon(
            "somebody to be asked",
            lambda: (green := workers.record().find("tally.v2-2")) is not None and green.phase == "waiting",
        )
        assert not made.is_ready()
        status, _, done = made.ask("POST", "/v1/projections/tally/switch")
        assert status == 200, done
        soon("the switch", lambda: workers.record().active == "tally.v2-2")
        workers.ready(made, old)
        status, _, done = made.ask("POST", "/v1/projections/tally/retire")
        assert status == 200, done
        soon("the old one to be gone", lambda: [one.id for one in workers.record().generations] == ["tally.v2-2"])
        soon("its models to be gone", lambda: not any((one.state_dir / "tally.v1").exists() for one in (old, made)))
        # The old code, asked to rebuild whatever is not its own, leaves what has replaced it alone.
        stubborn = workers.start("d", "--on-change", "rebuild")
        workers.ready(stubborn)
        soon("the old code to wait", lambda: (waits := workers.record().waiting) is not None and waits.version == 1)
        assert workers.record().running is None
        assert stubborn.terminate() == 0


def test_adopted_code_goes_on_with_the_models_on_every_machine(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        old = [workers.start("a"), workers.start("b")]
        workers.ready(*old)
        expected = workers.expected()
        for one in old:
            assert one.terminate() == 0, one.output()
        new = [workers.start(f"{name}2", "--on-change", "adopt", projections=REFACTORED, state=name) for name in "ab"]
        workers.ready(*new)
        live = workers.record().live
        assert (live.id, live.fingerprint, live.epoch) == ("tally.v1", fingerprint(Refactored()), 1)
        assert workers.models(new[0]) == expected


def test_a_rebuild_in_place_sets_the_fleet_back_and_no_worker_is_restarted(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        both = [workers.start(name) for name in "ab"]
        workers.ready(*both)
        expected = workers.expected()
        status, _, done = both[0].ask("POST", "/v1/projections/tally/rebuild", {"in_place": True})
        assert (status, done["rebuild"]["generation"]) == (200, "tally.v1"), done
        refused, _, problem = both[1].ask("POST", "/v1/projections/tally/rebuild")
        assert (refused, problem["error"]) == (409, "RebuildRunning")
        soon("its end", lambda: (ended := workers.record().rebuild) is not None and ended.outcome == "completed")
        live = workers.record().live
        assert (live.epoch, live.resets, live.id) == (2, dict.fromkeys(range(4), 2), "tally.v1")
        workers.ready(*both)
        assert workers.models(both[0]) == expected
        assert all(one.process.poll() is None for one in both)


@pytest.mark.parametrize("partitions", [[0, 1, 2, 3], [2]])
def test_offsets_that_were_set_to_the_start_while_nobody_folds_are_a_rebuild_of_these(
    new_kit: NewKit, partitions: list[int]
) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        assert one.terminate() == 0, one.output()
        where = f"{kit.topic}:{','.join(map(str, partitions))}"
        consumer_groups(kit.bootstrap, "--group", kit.group, "--topic", where, *TO_EARLIEST)
        again = workers.start("a2", state="a")
        soon("a rebuild", lambda: (found := workers.record().rebuild) is not None and found.outcome == "completed")
        record = workers.record()
        assert record.rebuild is not None
        assert record.rebuild.by == "somebody's tool"
        assert record.live.resets == dict.fromkeys(partitions, 2)
        workers.ready(again)
        assert workers.models(again) == workers.expected()
        assert "offsets.reset_honoured" in again.output()


def test_an_offset_that_the_models_cannot_honour_halts_that_generation_until_a_person_says(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        expected = workers.expected()
        assert one.terminate() == 0, one.output()
        reset(kit, {1: 17})
        again = workers.start("a2", state="a")
        soon("it to halt", lambda: "keep-models" in workers.record().live.halted)
        assert f"{kit.topic}[1]@17" in workers.record().live.halted
        soon("it to say so", lambda: again.status()["projections"]["tally"]["generations"]["tally.v1"]["halted"] != "")
        status, _, done = again.ask("POST", "/v1/projections/tally/keep-models")
        assert status == 200, done
        workers.ready(again)
        soon("it to be folded", lambda: set(workers.owners("tally.v1")) == {0, 1})
        assert workers.models(again) == expected
        assert workers.record().live.epoch == 1


def test_generations_whose_partitions_are_on_several_machines_are_compared_while_they_are_folded(
    new_kit: NewKit,
) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(3000, streams=100))
    with fleet(kit) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        new = [workers.start(name, projections=EXPECTING) for name in "cd"]
        workers.listening(*new)
        with traffic(kit, 3000):
            status, _, done = new[0].ask("POST", "/v1/projections/tally/rebuild", {"policy": "report"})
            assert status == 200, done
            soon("a report", lambda: (found := workers.record().running) is not None and found.report is not None)
            running = workers.record().running
            assert running is not None
            assert running.report is not None
            changed = running.report.changed  # one may be deleted by an event just then
            assert 5 < changed <= 10, running.why
            assert (running.report.added, running.report.removed) == (0, 0), running.why
            assert running.report.not_compared == {}
            for one in (*old, *new):
                status, report = one.get("/v1/projections/tally/report")
                assert {found["id"] for found in report["differences"]} == {
                    f"stream-{ten}7" for ten in ("", *range(1, 10))
                }
            first = running.report.at
            assert old[1].ask("POST", "/v1/projections/tally/verify")[0] == 200
            soon(
                "another report",
                lambda: (
                    (found := workers.record().running) is not None
                    and found.report is not None
                    and found.report.at > first
                ),
            )
            status, _, done = old[0].ask("POST", "/v1/projections/tally/cancel")
            assert status == 200, done
            assert old[1].ask("POST", "/v1/projections/tally/verify")[0] == 409, "nothing to compare"
            told = kit.refold("verify", ok=3)
            assert "POST /v1/projections/tally/verify" in told
            soon("it to be gone", lambda: len(workers.record().generations) == 1)
            # What the new code expects needs nobody, whoever leads.
            status, _, done = new[1].ask("POST", "/v1/projections/tally/rebuild")
            assert (status, done["rebuild"]["policy"]) == (200, "validate"), done
            soon("the switch", lambda: workers.record().live.version == 2)
        rebuild = workers.record().rebuild
        assert rebuild is not None
        assert rebuild.report is not None
        assert 5 < rebuild.report.changed <= 10
        assert rebuild.report.unexpected == 0


def metrics(worker: Worker) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """By name, and then by labels."""
    status, _, text = worker.ask("GET", "/metrics")
    assert status == 200
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_the_figures_are_told_by_labels_of_which_there_are_only_so_many(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        soon("the ends to be seen", lambda: len(metrics(one).get("refold_lag_seconds", ())) == 2)
        soon("all to be told", lambda: sum(metrics(one)["refold_events_processed_total"].values()) == 500)
        soon("no lag", lambda: list(metrics(one)["refold_lag_seconds"].values()) == [0.0, 0.0])
        soon("it to lead", lambda: metrics(one)["refold_worker_leader"] == {(): 1.0})
        found = metrics(one)
        assert sum(found["refold_models"].values()) == len(workers.expected())
        assert set(found["refold_lag_seconds"].values()) == set(found["refold_lag_records"].values()) == {0.0}
        assert set(found["refold_history_complete"].values()) == {1.0}
        assert found["refold_worker_leader"] == found["refold_worker_ready"] == {(): 1.0}
        assert next(iter(found["refold_commit_duration_seconds_count"].values())) > 0
        assert next(iter(found["refold_apply_duration_seconds_count"].values())) > 0
        assert next(iter(found["refold_agents_resident_memory_bytes"].values())) > 10 << 20
        soon("all memory", lambda: min(metrics(one)["refold_rocksdb_memory_bytes"].values()) > 1000)
        assert {dict(labels)["side"] for labels in found["refold_rocksdb_memory_bytes"]} == {"writing", "reading"}
        shape = {name: len(samples) for name, samples in found.items()}
        for number in range(50):
            one.get(f"/v1/projections/tally/models/stream-{number}")
            one.get(f"/whatever/{number}")
            one.ask("PATCH", f"/v1/projections/{number}/models/x")
        after = metrics(one)
        assert {name: len(after[name]) for name in shape if "quer" not in name} == {
            name: count for name, count in shape.items() if "quer" not in name
        }
        routes = {dict(labels)["route"] for labels in after["refold_queries_total"]}
        assert routes <= {"/v1/projections/*/models/*", "/metrics", "/status", "unknown"}, routes
        # An event that nobody can fold is behind by its own age, and not by that of the one before it.
        produce(kit.bootstrap, kit.topic, [("stream-1", envelope(9000, "fail"))], partition=0)
        soon("it to halt", lambda: max(metrics(one)["refold_partition_halted"].values()) == 1.0)
        soon("its age", lambda: max(metrics(one)["refold_lag_seconds"].values()) > 2.0)
        assert max(metrics(one)["refold_lag_seconds"].values()) < 20
        status, _, _done = one.ask("POST", "/v1/projections/tally/rebuild", {"in_place": True})
        assert status == 200
        soon("the rebuild", lambda: max(metrics(one)["refold_rebuild_running"].values()) == 1.0)


def test_what_nobody_can_fold_any_more_is_served_as_stale_and_says_so(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        workers.ready(*old)
        expected = workers.expected()
        for one in old:
            assert one.terminate() == 0, one.output()
        new = [workers.start(f"{name}2", projections=FIXED, state=name) for name in "ab"]
        workers.ready(*new)
        produce(kit.bootstrap, kit.topic, tally_events(100, first=2000))  # nobody folds these
        for one in new:
            soon("what is old to be served", lambda one=one: one.get("/v1/projections/tally/models/stream-1")[0] == 200)  # type: ignore[misc]
            status, found = one.get("/v1/projections/tally/models/stream-1")
            assert (status, found["stale"], found["model"]) == (200, True, expected["stream-1"])
            assert workers.models(one) == expected
            status, problem = one.get("/v1/projections/tally/models/nobody")
            assert (status, problem["type"]) == (404, "urn:refold:unknown-model")


def test_the_commands_of_a_terminal_have_the_workers_rebuild_and_look_on(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        both = [workers.start(name) for name in "ab"]
        workers.ready(*both)
        expected = workers.expected()
        said = kit.refold("rebuild", "--yes")  # in a directory of its own, where nothing is
        assert said.startswith("tally.v1-2 is active (identical: 50 models"), said
        assert workers.record().live.state != ""
        assert not (kit.state_dir / "tally.v1-2").exists()
        assert kit.refold("rollback").startswith("tally.v1 is active")
        assert "has members" in kit.refold("rebuild", "--in-place", "--yes", ok=3)
        assert kit.refold("retire").startswith("tally.v1 is active")
        soon("the copies to be gone", lambda: not any((one.state_dir / "tally.v1-2").exists() for one in both))
        assert workers.models(both[0]) == expected


def test_without_a_broker_a_worker_is_healthy_and_not_ready_and_ends_when_it_is_told(
    new_kit: NewKit, tmp_path: Path
) -> None:
    kit = new_kit(partitions=1)
    with fleet(kit, variables={"REFOLD_REQUEST_TIMEOUT_S": "2"}) as workers:
        one = workers.start("a", "--bootstrap-servers", "127.0.0.1:1")
        soon("it to say what is missing", lambda: "No Kafka broker at 127.0.0.1:1" in str(asked(one, "/readyz")))
        assert asked(one, "/healthz") == (200, {"ok": True, "why": []})
        status, problem = asked(one, "/v1/projections/tally/models/x")
        assert (status, problem["type"]) == (503, "urn:refold:not-ready")
        assert one.terminate(20) == 0, one.output()
        both = [workers.start(name, port=one.port) for name in "bc"]
        soon("one of the two to have the port", lambda: any(each.process.poll() is not None for each in both))
        (loser,) = [each for each in both if each.process.poll() is not None]
        assert loser.process.returncode == 2
        assert "cannot be listened at" in loser.output()


def asked(worker: Worker, path: str) -> tuple[int, Any]:
    try:
        return worker.get(path)
    except OSError:
        return 0, None


def test_history_that_is_gone_is_found_before_anything_is_given_up_for_it(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        expected = workers.expected()
        kit.delete_before(0, 10)
        status, _, done = one.ask("POST", "/v1/projections/tally/rebuild", {"in_place": True})
        assert status == 200, done
        soon(
            "it to be given up",
            lambda: (found := workers.record().rebuild) is not None and found.outcome == "cancelled",
        )
        rebuild, live = workers.record().rebuild, workers.record().live
        assert rebuild is not None
        assert f"{kit.topic}[0] lacks its first 10 offsets" in rebuild.why
        assert (live.epoch, live.reset) == (1, None)
        soon("it to be folded again", lambda: set(workers.owners("tally.v1")) == {0, 1})
        workers.ready(one)
        assert workers.models(one) == expected
        assert one.terminate() == 0, one.output()
        consumer_groups(kit.bootstrap, "--group", kit.group, "--topic", f"{kit.topic}:0", *TO_EARLIEST)
        again = workers.start("a2", state="a")
        soon("it to halt", lambda: "lacks its first 10 offsets" in workers.record().live.halted)
        workers.ready(again)
        assert workers.models(again) == expected  # as stale
        status, _, done = again.ask("POST", "/v1/projections/tally/keep-models")
        assert status == 200, done
        soon("it to be folded again", lambda: set(workers.owners("tally.v1")) == {0, 1})


def test_a_worker_that_is_told_to_end_as_it_starts_ends(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with fleet(kit) as workers:
        for number in range(8):
            one = workers.start(f"a{number}")
            soon("it to listen", lambda one=one: "worker.listens" in one.output())  # type: ignore[misc]
            time.sleep(number * 0.15)  # while it joins
            assert one.terminate(20) == 0, one.output()


def test_partitions_that_were_added_to_a_topic_are_named_until_a_rebuild_takes_them_in(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        admin = AdminClient({"bootstrap.servers": kit.bootstrap})  # must outlive its future
        admin.create_partitions([NewPartitions(kit.topic, 3)])[kit.topic].result(30)
        produce(kit.bootstrap, kit.topic, [("new", envelope(1000))], partition=2)

        def not_folded() -> dict[str, int | None]:
            found = one.status()["projections"]["tally"]["generations"]
            return {id_: generation["partitions_not_folded"] for id_, generation in found.items()}

        soon("it to be named", lambda: not_folded() == {"tally.v1": 1})
        assert list(metrics(one)["refold_partitions_not_folded"].values()) == [1.0]
        assert "topic.partitions_added" in one.output()
        status, _, done = one.ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
        assert status == 200, done
        soon("the switch", lambda: workers.record().active == "tally.v1-2")
        soon("the new one to be looked at", lambda: not_folded().get("tally.v1-2") == 0)
        soon("the switch to be heard of", lambda: one.status()["projections"]["tally"]["active"] == "tally.v1-2")
        assert "new" in workers.models(one)
