"""Every error that refold raises, in one tree.

    CqrsError
    ├── ConfigError            what was asked for cannot be: settings, flags, a projection's declaration
    ├── BrokerError            Kafka itself
    │   ├── BrokerUnavailable  nobody answers at the address
    │   ├── AccessDenied       the cluster does not allow it: an ACL, a password or a certificate is missing
    │   ├── EmbeddedBrokerError  the embedded broker cannot be had, started or kept running
    │   ├── RegistryError      a record of the registry that this version does not understand
    │   ├── TopicNotFound
    │   ├── GroupNotFound
    │   └── TopicChanged       another topic of the same name, or another number of partitions
    ├── EventError             a record that is no event
    ├── ProjectionError        the user's code failed
    │   └── ModelSplit         events of one model are on several partitions
    ├── StorageError           the state directory
    │   ├── StoreLocked        another process folds in it
    │   ├── DiskFull
    │   ├── StoreAway          the database does not answer, or refuses for a moment
    │   ├── StoreCorrupt
    │   ├── ForeignStore       written by another projection, topic or format
    │   ├── StateNotFound      nothing was folded yet
    │   ├── RepositoryError    the snapshot repository does not answer, or refuses
    │   └── ModelNotFound
    ├── CheckpointError        positions
    │   ├── BuildChanged       another build, or other code, was made current meanwhile
    │   ├── CodeChanged        the state was folded by other code, or read with another codec
    │   └── ForeignOffset      a committed offset that is not ours and that the state cannot honour
    └── RebuildError
        ├── GroupActive        somebody is folding in this group
        ├── RebuildRunning     another rebuild of this state runs
        ├── HistoryIncomplete  events that a rebuild needs are gone
        ├── GenerationNotFound
        ├── PlanStale          what a plan was made for has changed
        ├── NotReady           a generation is not at what was asked of it
        ├── NotLeading         another worker leads by now
        ├── ApprovalPending    a rebuild waits for a person
        ├── ModelsDiffer       two generations are not identical
        ├── DeadLettersLeft    a rebuild is completed, and some events are not in their models
        ├── PartialFailure     of several rebuilds, some failed
        ├── RebuildCancelled
        └── AgentDied          a process that folds ended without a word

A message says what, where (`topic[partition]@offset`), the measured value, and what to do next.
The same facts are attributes, for programs.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccessDenied",
    "AgentDied",
    "ApprovalPending",
    "BrokerError",
    "BrokerUnavailable",
    "BuildChanged",
    "CheckpointError",
    "CodeChanged",
    "ConfigError",
    "CqrsError",
    "DeadLettersLeft",
    "DiskFull",
    "EmbeddedBrokerError",
    "EventError",
    "ForeignOffset",
    "ForeignStore",
    "GenerationNotFound",
    "GroupActive",
    "GroupNotFound",
    "HistoryIncomplete",
    "ModelNotFound",
    "ModelSplit",
    "ModelsDiffer",
    "NotLeading",
    "NotReady",
    "PartialFailure",
    "PlanStale",
    "ProjectionError",
    "RebuildCancelled",
    "RebuildError",
    "RebuildRunning",
    "RegistryError",
    "RepositoryError",
    "StateNotFound",
    "StorageError",
    "StoreAway",
    "StoreCorrupt",
    "StoreLocked",
    "TopicChanged",
    "TopicNotFound",
]


class CqrsError(Exception):
    """The root: catch this to catch all of refold's own errors.

    Attributes:
        projection: The projection's name, where one is concerned.
        topic: The topic's name, likewise.
        partition: The partition's number, likewise.
        offset: The record's own offset, likewise.
        event_id: The event's id, where it was known.
    """

    def __init__(
        self,
        message: str,
        *,
        projection: str | None = None,
        topic: str | None = None,
        partition: int | None = None,
        offset: int | None = None,
        event_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.projection = projection
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.event_id = event_id


def at(topic: str, partition: int, offset: int | None = None) -> str:
    """Write coordinates the one way they are written everywhere: `topic[partition]@offset`."""
    return f"{topic}[{partition}]" if offset is None else f"{topic}[{partition}]@{offset}"


def text_of(value: bytes, limit: int = 120) -> str:
    """Write the start of a value for a message: text as text, and what is none as Python's bytes."""
    head = value[:limit]
    more = f"… ({len(value):,} bytes)" if len(value) > limit else ""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if not more or error.start < len(head) - 3:  # not just a character that was cut in two
            return f"{head!r}{more}"
        text = head[: error.start].decode()
    return f"{text if text.isprintable() else repr(text)}{more}"


class ConfigError(CqrsError, ValueError):
    """A setting, a flag or a projection's declaration that cannot work. Nothing was started."""


class BrokerError(CqrsError):
    """Kafka refused or could not be understood."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """No broker answered within the deadline. State and positions are as they were committed last."""


class OffsetsPending(BrokerUnavailable):
    """A transaction that has not ended may move a group's offsets, so nobody is told them (KIP-447). Ask again."""


class AccessDenied(BrokerError, PermissionError):
    """The cluster does not allow it; the message names the ACL that is missing, or what it did not accept."""


class EmbeddedBrokerError(BrokerError):
    """The embedded Kafka could not be installed, started or kept running; the message ends with its log's tail."""


class RegistryError(BrokerError):
    """A record of the registry is of another schema, or cannot be understood. It is left as it is."""


class TopicNotFound(BrokerError, LookupError):
    """The topic does not exist. It is never created by reading it."""


class GroupNotFound(BrokerError, LookupError):
    """There is no such consumer group, or it has committed nothing."""


class TopicChanged(BrokerError):
    """The topic was deleted and made again, or its partition count changed, since the state was folded from it."""


class EventError(CqrsError, ValueError):
    """A record that the codec cannot read as an event. State and position are as they were before it."""


class ProjectionError(CqrsError):
    """The projection's own code raised, or gave a model that cannot be stored. The cause is chained.

    State and position are as they were before the event.

    Attributes:
        user_traceback: The traceback of the user's code, from its own first frame on; "" where there is none. Text,
            so that it crosses to another process.
    """

    user_traceback: str = ""
    is_transient: bool = False
    """The projection raised `TransientError`: the same event may be folded later."""
    retry_in_s: float | None = None
    """When the event is to be tried again, before anybody is told; None: it is not."""


class ModelSplit(ProjectionError):
    """Events of one model are on several partitions, so each holds a part of it and neither is the model."""


class StorageError(CqrsError, OSError):
    """The state directory could not be read or written."""


class StoreLocked(StorageError):
    """Another process folds in the directory: one writer per build and partition. The message names it."""


class DiskFull(StorageError):
    """There is no space left for what is to be written. Nothing of it was."""


class StoreAway(StorageError):
    """The database does not answer, or refuses for a moment. What was not committed is folded again once it does."""


class StoreCorrupt(StorageError):
    """The store's files are damaged. The log is the truth: the partition can be folded again."""


class ForeignStore(StorageError):
    """The directory holds something else: another projection's or topic's state, an unknown format, other files."""


class StateNotFound(StorageError, LookupError):
    """There are no read models yet: nothing was folded into the directory."""


class RepositoryError(StorageError):
    """The snapshot repository does not answer, or refuses."""


class ModelNotFound(StorageError, LookupError):
    """No read model has that id."""


class CheckpointError(CqrsError):
    """A position that cannot be gone on from."""


class BuildChanged(CheckpointError):
    """Another build, or the same one for other code, was made current while this process folded.

    What this process had committed is kept; it writes nothing more.
    """


class CodeChanged(CheckpointError):
    """The state was folded by other code than the projection's code now, or its records were read otherwise."""


class ForeignOffset(CheckpointError):
    """A committed offset without refold's stamp: somebody's tool set it, and the state cannot honour it."""


class RebuildError(CqrsError):
    """A rebuild could not start or could not finish."""


class TransactionHangs(RebuildError):
    """A transaction that has filled a generation's own topic never ends: Kafka has lost that it did. Rebuild again."""


class GroupActive(RebuildError):
    """The consumer group has members, so its offsets cannot be reset under them."""


class RebuildRunning(RebuildError):
    """Another process is rebuilding this state; the message names it."""


class HistoryIncomplete(RebuildError):
    """Retention, compaction or a deletion has taken events that the fold needs."""


class GenerationNotFound(RebuildError, LookupError):
    """The projection has no such generation."""


class PlanStale(RebuildError):
    """A plan is of a world that is no more: another topic, other code, other offsets, or it is too old. Nothing was
    changed.
    """


class NotReady(RebuildError):
    """A generation is not at what was asked of it: not caught up, not compared, not kept. Nothing was changed."""


class NotLeading(RebuildError):
    """Another worker leads the projection by now; this one has written nothing."""


class ApprovalPending(RebuildError):
    """A rebuild has come to where a person is to say whether what differs is as it should be."""


class ModelsDiffer(RebuildError):
    """Two generations were compared, and their models are not identical."""


class DeadLettersLeft(RebuildError):
    """A rebuild is completed, and some events are not in their models: they wait as dead letters, or were skipped."""


class PartialFailure(RebuildError):
    """Of several rebuilds, some have failed or were skipped; the others are completed."""


class AgentDied(RebuildError):
    """An agent's process ended without a word: killed, out of memory, a fault in native code. What it had committed is
    kept.
    """


class RebuildCancelled(RebuildError):
    """The rebuild was cancelled. What it had folded is kept.

    Attributes:
        checkpoint: A `ProjectionCheckpoint` of what is kept, to go on from (`FromCheckpoint`); None where the rebuild
            had not begun, and nothing was changed.
    """

    checkpoint: Any = None
