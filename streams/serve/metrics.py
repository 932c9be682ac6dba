"""A worker's figures for Prometheus: in base units, and by labels of which there are only so many."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from streams.control.record import Generation
from streams.serve.standing import readiness
from streams.serve.tending import Tended, Tending

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Metrics"]

_GENERATION = ("projection", "generation")
_PARTITION = (*_GENERATION, "topic", "partition")
_QUERY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REBUILD_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
_PLACES = re.compile(r"\{[^}]*\}")


class Metrics:
    """Collects from a worker when it is asked.

    Args:
        worker: Whose.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._registry = CollectorRegistry()
        self._queries = Counter(
            "refold_queries", "Requests answered.", ("method", "route", "code"), registry=self._registry
        )
        self._query_s = Histogram(
            "refold_query_duration_seconds",
            "How long requests took.",
            ("method", "route"),
            buckets=_QUERY_S,
            registry=self._registry,
        )
        self._rebuild_s = Histogram(
            "refold_rebuild_duration_seconds",
            "How long rebuilds took that ended while this worker led.",
            ("projection",),
            buckets=_REBUILD_S,
            registry=self._registry,
        )
        self._registry.register(_Standing(worker))
        ProcessCollector(registry=self._registry)

    def query(self, request: web.Request, status: int, seconds: float) -> None:
        """Note a request that was answered. Its route counts, and not what was asked for: ids are no labels."""
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else _PLACES.sub("*", resource.canonical)
        method = request.method if request.method in ("GET", "POST") else "other"
        self._queries.labels(method, route, str(status)).inc()
        self._query_s.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """Give them all; it may take as long as a look at some directories does."""
        for name, leading in self._worker.leadings.items():
            while leading.durations_s:
                self._rebuild_s.labels(name).observe(leading.durations_s.pop())
        return generate_latest(self._registry)


class _Standing(Collector):
    """What is known of a worker at the time."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        yield InfoMetricFamily("refold_build", "Which refold this is.", {"version": version("refold")})
        yield GaugeMetricFamily("refold_worker_leader", "1 where it leads.", int(worker.leadership.is_leading))
        yield GaugeMetricFamily("refold_worker_ready", "1 where it serves its share.", int(not readiness(worker)))
        yield from self._means()
        yield from self._rebuilds()
        yield from self._generations()
        yield from self._partitions()

    def _means(self) -> Iterator[Metric]:
        """What it may take."""
        limit = self._worker.settings.memory_limit_bytes
        if limit is not None:
            yield GaugeMetricFamily("refold_memory_limit_bytes", "What it and its agents may take together.", limit)
        size = GaugeMetricFamily(
            "refold_state_volume_bytes", "The size of the volume with the state directory.", labels=["directory"]
        )
        free = GaugeMetricFamily("refold_state_volume_free_bytes", "What is free of it.", labels=["directory"])
        for directory in sorted({tending.site.state_dir for tending in self._worker.tendings.values()}):
            try:
                found = os.statvfs(directory)
            except OSError:  # nothing was written there yet
                continue
            size.add_metric([str(directory)], found.f_frsize * found.f_blocks)
            free.add_metric([str(directory)], found.f_frsize * found.f_bavail)
        yield from (size, free)

    def _rebuilds(self) -> Iterator[Metric]:
        """Those that run, as the leader knows them, and those that have ended."""
        running = GaugeMetricFamily("refold_rebuild_running", "1 where a rebuild is under way.", labels=["projection"])
        began = GaugeMetricFamily(
            "refold_rebuild_started_timestamp_seconds", "When the last rebuild began.", labels=["projection"]
        )
        ratio = GaugeMetricFamily(
            "refold_rebuild_progress_ratio", "How far the rebuild is, 0 to 1; of the leader.", labels=["projection"]
        )
        rate = GaugeMetricFamily(
            "refold_rebuild_events_per_second", "How fast it folds; of the leader.", labels=["projection"]
        )
        updated = GaugeMetricFamily(
            "refold_rebuild_models_updated", "Events that have changed a model in it.", labels=["projection"]
        )
        left = GaugeMetricFamily(
            "refold_rebuild_estimated_seconds_left",
            "How long it will take yet; absent where unknown.",
            labels=["projection"],
        )
        ended = CounterMetricFamily(
            "refold_rebuilds", "Rebuilds that ended while this worker led.", labels=["projection", "result"]
        )
        failures = CounterMetricFamily(
            "refold_rebuild_failures", "Those of them that were given up.", labels=["projection"]
        )
        for name, tending in self._worker.tendings.items():
            record, leading = tending.record, self._worker.leadings[name]
            for result in ("completed", "cancelled"):
                ended.add_metric([name, result], leading.ended[result])
            failures.add_metric([name], leading.ended["cancelled"])
            if record is None:
                continue
            running.add_metric([name], int(record.running is not None))
            if record.rebuild is not None:
                began.add_metric([name], record.rebuild.began_at.timestamp())
            progress = leading.progress
            if progress is not None and record.running is not None:
                ratio.add_metric([name], (progress.completion_percentage() or 0.0) / 100)
                rate.add_metric([name], progress.events_per_second)
                updated.add_metric([name], progress.models_updated)
                seconds = progress.estimated_seconds_left()
                if seconds is not None:
                    left.add_metric([name], seconds)
        yield from (running, began, ratio, rate, updated, left, ended, failures)

    def _generations(self) -> Iterator[Metric]:
        labels = list(_GENERATION)
        phase = GaugeMetricFamily("refold_generation_phase", "1 for what it is at.", labels=[*labels, "phase"])
        halted = GaugeMetricFamily("refold_generation_halted", "1 where a person is to say.", labels=labels)
        agents = GaugeMetricFamily("refold_agents", "Processes that fold it here.", labels=labels)
        memory = GaugeMetricFamily("refold_agents_resident_memory_bytes", "Memory of these.", labels=labels)
        rocksdb = GaugeMetricFamily(
            "refold_rocksdb_memory_bytes",
            "Memory that RocksDB takes here: writing for agents, reading for this worker's answers.",
            labels=[*labels, "side"],
        )
        size = GaugeMetricFamily("refold_state_bytes", "What this worker's copy takes on disk.", labels=labels)
        added = GaugeMetricFamily(
            "refold_partitions_not_folded",
            "Partitions that its topic was given since it began; their events are not in it.",
            labels=labels,
        )
        restarts = CounterMetricFamily("refold_agent_restarts", "Agents started again after they died.", labels=labels)
        rebalances = CounterMetricFamily("refold_rebalances", "How often partitions came or went here.", labels=labels)
        refused = CounterMetricFamily("refold_commit_failures", "Commits that its group refused.", labels=labels)
        restored = CounterMetricFamily(
            "refold_partitions_restored", "Partitions whose store came from the snapshot repository.", labels=labels
        )
        sent = CounterMetricFamily("refold_snapshots", "Snapshots sent to the repository.", labels=labels)
        sent_bytes = CounterMetricFamily("refold_snapshot_bytes", "What was sent for them.", labels=labels)
        not_sent = CounterMetricFamily(
            "refold_snapshot_failures", "Snapshots that could not be sent; they are tried again.", labels=labels
        )
        commits = SummaryMetricFamily("refold_commit_duration_seconds", "How long checkpoints took.", labels=labels)
        applied = SummaryMetricFamily(
            "refold_apply_duration_seconds", "How long batches took to decode and apply.", labels=labels
        )
        for tending, one, tended in self._all():
            key = [tending.site.name, one.id]
            phase.add_metric([*key, one.phase], 1)
            halted.add_metric(key, int(bool(one.halted)))
            if tended is None:
                continue
            work = tended.status.work
            agents.add_metric(key, len(tended.pids))
            if one.id in self._worker.observing.added:
                added.add_metric(key, self._worker.observing.added[one.id])
            memory.add_metric(key, sum(map(_resident, tended.pids)))
            restarts.add_metric(key, work.restarts + tended.failures)
            rebalances.add_metric(key, work.rebalances)
            restored.add_metric(key, work.restored)
            sent.add_metric(key, work.snapshots)
            sent_bytes.add_metric(key, work.snapshot_bytes)
            not_sent.add_metric(key, work.snapshots_failed)
            refused.add_metric(key, work.refused)
            commits.add_metric(key, count_value=work.commits, sum_value=work.commit_s)
            applied.add_metric(key, count_value=work.batches, sum_value=work.apply_s)
            rocksdb.add_metric([*key, "writing"], tended.status.rocksdb_bytes)
            if tended.job is not None:
                rocksdb.add_metric([*key, "reading"], self._worker.shelf.memory_bytes(tended.job.build))
                size.add_metric(key, tended.job.build.stores.size_bytes())
        yield from (
            phase,
            halted,
            agents,
            added,
            memory,
            rocksdb,
            size,
            restarts,
            rebalances,
            refused,
            restored,
            sent,
            sent_bytes,
            not_sent,
            applied,
            commits,
        )

    def _partitions(self) -> Iterator[Metric]:
        """Those that are held here: so each is told by one worker."""
        labels = list(_PARTITION)
        position = GaugeMetricFamily("refold_position", "The next offset to fold, as committed.", labels=labels)
        low = GaugeMetricFamily("refold_log_start_offset", "The first offset that the topic still has.", labels=labels)
        end = GaugeMetricFamily("refold_log_end_offset", "The topic's end.", labels=labels)
        margin = GaugeMetricFamily(
            "refold_retention_margin_records", "Offsets between the topic's start and the position.", labels=labels
        )
        lag = GaugeMetricFamily("refold_lag_records", "Offsets that are not folded.", labels=labels)
        lag_s = GaugeMetricFamily(
            "refold_lag_seconds",
            "How old the next event to fold is; 0 at the end, absent where unknown.",
            labels=labels,
        )
        whole = GaugeMetricFamily("refold_history_complete", "1 where the topic has all from offset 0.", labels=labels)
        models = GaugeMetricFamily("refold_models", "Models, as committed.", labels=labels)
        stuck = GaugeMetricFamily("refold_partition_halted", "1 where it is folded no further.", labels=labels)
        phase = GaugeMetricFamily(
            "refold_partition_phase",
            "1 for what it is at: opening, restoring, replaying, ready, stalled, halted.",
            labels=[*labels, "phase"],
        )
        snapshot = GaugeMetricFamily(
            "refold_snapshot_position", "The position of its newest snapshot in the repository.", labels=labels
        )
        snapshot_at = GaugeMetricFamily("refold_snapshot_timestamp_seconds", "When that was sent.", labels=labels)
        copied = GaugeMetricFamily(
            "refold_standby_position", "The position of the copy here of what another worker owns.", labels=labels
        )
        copy_lag = GaugeMetricFamily("refold_standby_lag_records", "Offsets that it has not folded.", labels=labels)
        processed = CounterMetricFamily("refold_events_processed", "Events folded or declined.", labels=labels)
        declined = CounterMetricFamily("refold_events_declined", "Events declined.", labels=labels)
        letters = GaugeMetricFamily("refold_dead_letters", "Events that wait as dead letters.", labels=labels)
        skipped = CounterMetricFamily(
            "refold_events_skipped", "Events left out because they could not be folded.", labels=labels
        )
        for tending, one, tended in self._all():
            seen = self._worker.observing.seen.get(one.id)
            views = {} if seen is None else {view.partition: view for view in seen.view.partitions}
            for number, held in ({} if tended is None else tended.status.partitions).items():
                key = [tending.site.name, one.id, one.topic, str(number)]
                stuck.add_metric(key, int(held.is_halted))
                phase.add_metric([*key, held.phase], 1)
                if held.snapshot is not None and held.snapshot_ms is not None:
                    snapshot.add_metric(key, held.snapshot)
                    snapshot_at.add_metric(key, held.snapshot_ms / 1000)
                if held.committed < 0:
                    continue
                position.add_metric(key, held.committed)
                models.add_metric(key, held.models)
                processed.add_metric(key, held.events)
                declined.add_metric(key, held.declined)
                letters.add_metric(key, held.dead_letters)
                skipped.add_metric(key, held.skipped)
                if number in views:
                    view = views[number]
                    low.add_metric(key, view.low)
                    end.add_metric(key, view.end)
                    if one.source is None:  # what is gone of a topic of its own, is in snapshots
                        whole.add_metric(key, int(view.low == 0))
                        margin.add_metric(key, held.committed - view.low)
                    lag.add_metric(key, max(0, view.end - held.committed))
                if seen is not None and number in seen.lag_s:
                    lag_s.add_metric(key, seen.lag_s[number])
            filling = None if seen is None or one.source is None else seen.view.filling
            views = {} if filling is None else {view.partition: view for view in filling.partitions}
            for number, held in ({} if tended is None else tended.filled.partitions).items():
                assert one.source is not None
                key = [tending.site.name, one.id, one.source.topic, str(number)]
                stuck.add_metric(key, int(held.is_halted))
                phase.add_metric([*key, held.phase], 1)
                if held.committed < 0:
                    continue
                position.add_metric(key, held.committed)
                processed.add_metric(key, held.declined)  # the others are counted where they are folded
                declined.add_metric(key, held.declined)
                if number in views:
                    view = views[number]
                    low.add_metric(key, view.low)
                    end.add_metric(key, view.end)
                    whole.add_metric(key, int(view.low == 0))
                    margin.add_metric(key, held.committed - view.low)
                    lag.add_metric(key, max(0, view.end - held.committed))
                if seen is not None and number in seen.filling_lag_s:
                    lag_s.add_metric(key, seen.filling_lag_s[number])
            views = {} if seen is None else {view.partition: view for view in seen.view.partitions}
            for number, copy in ({} if tended is None else tended.standing_by.partitions).items():
                key = [tending.site.name, one.id, one.topic, str(number)]
                if copy.committed >= 0:
                    copied.add_metric(key, copy.committed)
                    if number in views:
                        copy_lag.add_metric(key, max(0, views[number].end - copy.committed))
        yield from (position, low, end, margin, lag, lag_s, whole, models, stuck, processed, declined, letters, skipped)
        yield from (phase, snapshot, snapshot_at, copied, copy_lag)

    def _all(self) -> Iterator[tuple[Tending, Generation, Tended | None]]:
        for tending in self._worker.tendings.values():
            for one in () if tending.record is None else tending.record.generations:
                yield tending, one, tending.tended.get(one.id)


def _resident(pid: int) -> int:
    """Give a process's resident memory in bytes; 0 where it is gone, or the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
