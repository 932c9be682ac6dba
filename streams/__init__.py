"""Refold: fold a Kafka event topic into read models, and rebuild them from history.

What is here is loaded when it is first asked for, so that `refold --help` need not wait for what it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.adapters.postgres.store import PostgresStore
    from streams.adapters.postgres.stores import Postgres
    from streams.cli.progress import RichReporter
    from streams.cluster import Cluster
    from streams.config import FoldSettings, KafkaSettings, RecoverySettings
    from streams.control.active import ActiveModels
    from streams.control.compare import Report
    from streams.control.dead_letters import DeadLetters
    from streams.control.explain import History, explain
    from streams.control.generations import Generations
    from streams.control.hooks import RebuildHook
    from streams.control.observed import progress_of
    from streams.control.plan import RebuildPlan, Step
    from streams.control.preview import Preview, preview
    from streams.control.rebuild import RebuildCoordinator
    from streams.control.record import Generation, Record
    from streams.control.registry import Registry
    from streams.control.reporters import CallbackReporter, LogReporter, ProgressReporter
    from streams.control.retry import Retry
    from streams.control.strategies import (
        FromBeginning,
        FromCheckpoint,
        FromEvent,
        FromPosition,
        FromSnapshot,
        FromTime,
        RebuildStrategy,
        SpecificStreams,
    )
    from streams.control.target import Prepared, Target
    from streams.data.agent import Agent, AgentStatus
    from streams.data.checkpoint import CheckpointStore, KafkaCheckpointStore
    from streams.data.checkpoint_stores import MemoryCheckpointStore, RocksCheckpointStore
    from streams.data.cloudevents import CloudEventsCodec
    from streams.data.codec import EventCodec, Undecodable
    from streams.data.filters import Condition, Page, Query
    from streams.data.generation import RocksStore
    from streams.data.json_codec import JsonCodec
    from streams.data.process_runner import ProcessRunner
    from streams.data.read_model_stores import MemoryReadModelStore, RocksReadModelStore
    from streams.data.read_models import AtomicReadModelStore, Position, ReadModelStore
    from streams.data.reader import ModelReader
    from streams.data.recovery import Action, Failure, Recovery, RecoveryPolicy
    from streams.data.runner import ThreadRunner
    from streams.data.shared import SharedRead
    from streams.data.snapshots import Snapshot, Snapshots
    from streams.data.source import KafkaEventStore
    from streams.data.supervisor import Supervisor
    from streams.types import ProjectionCheckpoint, RebuildProgress

__all__ = [
    "RebuildCoordinator",
    "Generations",
    "Generation",
    "Record",
    "Registry",
    "Report",
    "RebuildPlan",
    "Step",
    "SharedRead",
    "ActiveModels",
    "Retry",
    "RecoveryPolicy",
    "Recovery",
    "Failure",
    "Action",
    "DeadLetters",
    "RebuildStrategy",
    "FromBeginning",
    "FromCheckpoint",
    "FromEvent",
    "FromPosition",
    "FromSnapshot",
    "FromTime",
    "SpecificStreams",
    "Prepared",
    "Target",
    "RebuildProgress",
    "progress_of",
    "ProgressReporter",
    "CallbackReporter",
    "LogReporter",
    "RichReporter",
    "RebuildHook",
    "explain",
    "History",
    "preview",
    "Preview",
    "ProjectionCheckpoint",
    "KafkaEventStore",
    "EventCodec",
    "JsonCodec",
    "CloudEventsCodec",
    "Undecodable",
    "RocksStore",
    "PostgresStore",
    "Postgres",
    "ModelReader",
    "ReadModelStore",
    "AtomicReadModelStore",
    "Position",
    "MemoryReadModelStore",
    "RocksReadModelStore",
    "Query",
    "Condition",
    "Page",
    "Snapshot",
    "Snapshots",
    "CheckpointStore",
    "KafkaCheckpointStore",
    "MemoryCheckpointStore",
    "RocksCheckpointStore",
    "Agent",
    "AgentStatus",
    "ThreadRunner",
    "ProcessRunner",
    "Supervisor",
    "Cluster",
    "FoldSettings",
    "KafkaSettings",
    "RecoverySettings",
]

_PLACES = {
    "streams.adapters.postgres.store": ("PostgresStore",),
    "streams.adapters.postgres.stores": ("Postgres",),
    "streams.cluster": ("Cluster",),
    "streams.config": ("FoldSettings", "KafkaSettings", "RecoverySettings"),
    "streams.cli.progress": ("RichReporter",),
    "streams.control.active": ("ActiveModels",),
    "streams.control.compare": ("Report",),
    "streams.control.dead_letters": ("DeadLetters",),
    "streams.control.explain": ("History", "explain"),
    "streams.control.generations": ("Generations",),
    "streams.control.record": ("Generation", "Record"),
    "streams.control.registry": ("Registry",),
    "streams.control.hooks": ("RebuildHook",),
    "streams.control.observed": ("progress_of",),
    "streams.control.plan": ("RebuildPlan", "Step"),
    "streams.control.preview": ("Preview", "preview"),
    "streams.control.reporters": ("CallbackReporter", "LogReporter", "ProgressReporter"),
    "streams.control.rebuild": ("RebuildCoordinator",),
    "streams.control.retry": ("Retry",),
    "streams.control.strategies": (
        "FromBeginning",
        "FromCheckpoint",
        "FromEvent",
        "FromPosition",
        "FromSnapshot",
        "FromTime",
        "RebuildStrategy",
        "SpecificStreams",
    ),
    "streams.control.target": ("Prepared", "Target"),
    "streams.data.agent": ("Agent", "AgentStatus"),
    "streams.data.checkpoint": ("CheckpointStore", "KafkaCheckpointStore"),
    "streams.data.checkpoint_stores": ("MemoryCheckpointStore", "RocksCheckpointStore"),
    "streams.data.cloudevents": ("CloudEventsCodec",),
    "streams.data.codec": ("EventCodec", "Undecodable"),
    "streams.data.filters": ("Condition", "Page", "Query"),
    "streams.data.json_codec": ("JsonCodec",),
    "streams.data.generation": ("RocksStore",),
    "streams.data.read_model_stores": ("MemoryReadModelStore", "RocksReadModelStore"),
    "streams.data.read_models": ("AtomicReadModelStore", "Position", "ReadModelStore"),
    "streams.data.reader": ("ModelReader",),
    "streams.data.recovery": ("Action", "Failure", "Recovery", "RecoveryPolicy"),
    "streams.data.process_runner": ("ProcessRunner",),
    "streams.data.runner": ("ThreadRunner",),
    "streams.data.supervisor": ("Supervisor",),
    "streams.data.snapshots": ("Snapshot", "Snapshots"),
    "streams.data.shared": ("SharedRead",),
    "streams.data.source": ("KafkaEventStore",),
    "streams.types": ("ProjectionCheckpoint", "RebuildProgress"),
}


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(place), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
