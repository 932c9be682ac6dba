"""Refold: fold a Kafka event topic into read models, and rebuild them from history."""

from streams.config import FoldSettings, KafkaSettings
from streams.control.rebuild import RebuildCoordinator
from streams.control.strategies import FromBeginning, RebuildStrategy
from streams.data.agent import Agent, AgentStatus
from streams.data.checkpoint import CheckpointStore, KafkaCheckpointStore
from streams.data.codec import CloudEventsCodec, EventCodec, JsonCodec, Undecodable
from streams.data.generation import RocksStore
from streams.data.reader import ModelReader
from streams.data.runner import ProcessRunner, ThreadRunner
from streams.data.source import KafkaEventStore
from streams.types import ProjectionCheckpoint, RebuildProgress

__all__ = [
    "RebuildCoordinator",
    "RebuildStrategy",
    "FromBeginning",
    "RebuildProgress",
    "ProjectionCheckpoint",
    "KafkaEventStore",
    "EventCodec",
    "JsonCodec",
    "CloudEventsCodec",
    "Undecodable",
    "RocksStore",
    "ModelReader",
    "CheckpointStore",
    "KafkaCheckpointStore",
    "Agent",
    "AgentStatus",
    "ThreadRunner",
    "ProcessRunner",
    "FoldSettings",
    "KafkaSettings",
]
