"""What the registry says of one projection: its generations, which of them is active, and the rebuild under way."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from streams.data.build import Build
from streams.prepared import prepared

__all__ = [
    "SCHEMAS",
    "Done",
    "Generation",
    "Gone",
    "Holding",
    "Phase",
    "Policy",
    "Rebuild",
    "Record",
    "Reset",
    "Source",
    "Summary",
    "Waiting",
    "facts_of",
    "schema_of",
]

SCHEMAS = (1, 2, 3)
"""Those that are understood. 2: a generation may have a `source`. 3: it may be kept elsewhere than in files. Who knows
only the ones before would leave that behind."""

Phase: TypeAlias = Literal[
    "new", "repartitioning", "replaying", "verifying", "waiting", "ready", "active", "kept", "retiring"
]
"""What a generation is at.

new → (repartitioning →) replaying → verifying → waiting → ready → active ⇄ kept → retiring → (gone)

new: it is to be made. repartitioning: its events are written once more, keyed by model, up to the ends as pinned; where
the projection says `partition_by = "model"`. replaying: it is folded from the beginning. verifying: it has caught up
and is to be compared. waiting: a person is to approve what the comparison found. ready: it may be switched to. active:
readers read it. kept: it was active, and goes on being folded for a while, to be switched back to. retiring: it is
being removed.
"""


Policy: TypeAlias = Literal["identical", "report", "validate", "none"]
"""What a comparison must have found, for a switch.

identical: no difference. report: whatever a person approves. validate: no difference that the projection's `validate`
does not expect. none: nothing is compared.
"""


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """A fold that is to be begun anew in place: whoever folds lets go, the group is set back, and they come again."""

    epoch: int
    """The one that begins."""
    partitions: tuple[int, ...]
    """Those that are folded again; the others go on where they are."""
    version: int
    """Of the code by which it is folded from then on, as the next two."""
    fingerprint: str
    codec: str


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The event topic of a generation that folds another one: its own, with the same events keyed by model.

    The consumer group of those who fill that is named as it is.
    """

    topic: str
    topic_id: str
    partitions: int
    targets: dict[int, int] = {}
    """By partition, the end as pinned when its rebuild began."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one projection: with its own group and state."""

    id: str
    """Its name, such as `orders.v2` or `orders.v2-5`; never given again."""
    number: int
    """Which one of the projection's; from 1."""
    version: int
    """Of the projection's code, as the next three."""
    fingerprint: str
    codec: str
    topic: str
    """What it folds: the event topic, or where it has a `source`, its own topic."""
    topic_id: str
    partitions: int
    source: Source | None = None
    """Where its own topic's events come from; None where it folds the event topic."""
    group: str
    """Its consumer group."""
    directory: str
    """The name of its directory in the state directory."""
    kept_in: str = "files"
    """What its models are kept in: files, on each machine that folds it, or postgres."""
    phase: Phase
    why: str = ""
    """What it was made for, or is what it is for."""
    epoch: int = 1
    """How often its fold has been begun; the number of its build."""
    state: str = ""
    """The id of its state, which every copy of it has, on whichever machine; "" where nothing was folded yet."""
    resets: dict[int, int] = {}
    """By partition, the epoch in which its fold was last begun anew; one that is not named has gone on since 1."""
    reset: Reset | None = None
    """How its fold is to be begun anew, while that is under way: nobody folds it meanwhile."""
    halted: str = ""
    """Why nobody folds it until a person has seen to it; "" where nothing is in the way."""
    targets: dict[int, int] = {}
    """By partition, the end as pinned when its replay began."""
    made_at: datetime
    changed_at: datetime
    """When it came to its phase."""
    kept_until: datetime | None = None
    """When one that is kept is to be retired."""

    @property
    def event_topic(self) -> str:
        """The topic that people write events to."""
        return self.topic if self.source is None else self.source.topic

    @property
    def is_folded(self) -> bool:
        """Whether it is folded for good, by whoever runs the projection with its code."""
        return self.phase in ("active", "kept") and self.reset is None and not self.halted


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found, in numbers; see `verify.Report`."""

    models_before: int
    models_after: int
    changed: int
    added: int
    removed: int
    fields: dict[str, int] = {}
    """By path, how many models differ there: those that differ most."""
    not_compared: dict[int, str] = {}
    """By partition, why it could not be."""
    unexpected: int = 0
    """Differences that the projection's `validate` does not expect."""
    seconds: float
    at: datetime

    @property
    def is_identical(self) -> bool:
        """Whether every model was compared, and none differs."""
        return not (self.changed or self.added or self.removed or self.not_compared)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild came to, and when."""

    what: str
    """A phase of its generation; paused; or setting-back, where the active one is rebuilt in place."""
    at: datetime


class Rebuild(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild beside the active generation: the one that runs, or the last one."""

    id: str
    generation: str
    """The one that is made."""
    replaces: str
    """The one that is active."""
    policy: Policy
    approve: Literal["ask", "auto"] = "ask"
    keep_s: float
    """For how long the replaced one is to be kept."""
    is_paused: bool = False
    is_cancelled: bool = False
    outcome: Literal["running", "completed", "cancelled"] = "running"
    report: Summary | None = None
    dead_letters: int = 0
    """Events of the new generation that waited as dead letters, once it had folded all that it was to."""
    skipped: int = 0
    """Events that were left out of it because they could not be folded, by then."""
    why: str = ""
    """What it waits for, or why it ended."""
    began_at: datetime
    ended_at: datetime | None = None
    steps: tuple[Step, ...] = ()
    """What it has come to so far, in order; each lasts until the next one, and the last one until it has ended."""
    by: str = ""
    """Who began it: a process and its machine."""

    @property
    def is_in_place(self) -> bool:
        """Whether the active generation itself is folded again."""
        return self.generation == self.replaces

    @property
    def is_running(self) -> bool:
        """Whether it has not ended, be there somebody at it or not."""
        return self.outcome == "running"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that nothing more is written to generations' own topics for a moment, so that they can be compared."""

    id: str
    generations: tuple[str, ...]
    barrier: dict[int, int] | None = None
    """By partition of the event topic, up to where; None: where they are."""
    until: datetime
    """When it is over, whatever has become of who wished it."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Code that was to fold the projection, and is another than the active generation's."""

    version: int
    fingerprint: str
    since: datetime
    by: str
    """A process and its machine."""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that is no more."""

    id: str
    version: int
    directory: str
    group: str
    why: str
    at: datetime


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was handled: it is not handled again, however often it is heard."""

    id: str
    verb: str
    refused: str = ""
    """Why it was not done; "" where it was."""
    kind: str = ""
    """Of which kind the refusal is: the error's name."""
    by: str = ""
    """Who gave it."""
    at: datetime


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one projection."""

    schema: int = 1
    projection: str
    revision: int = 0
    """How often it has been written."""
    group: str
    """From which the groups of all generations are named."""
    generations: tuple[Generation, ...] = ()
    """By number."""
    active: str
    """The one that is read."""
    wanted: str
    """The one that is to become active; the same where nothing is under way."""
    rebuild: Rebuild | None = None
    waiting: Waiting | None = None
    """Code that was refused, and waits for a person to say whether to rebuild or to adopt."""
    newest: int = 0
    """The highest number that a generation was given."""
    gone: tuple[Gone, ...] = ()
    """The last ones that were removed."""
    fleet: str = ""
    """The consumer group of the workers that see to it; "" where none ever did."""
    past: tuple[str, ...] = ()
    """Fingerprints of code whose generation was active and was replaced: nobody brings it up again by itself."""
    done: tuple[Done, ...] = ()
    """The last commands that a fleet's leader has handled."""
    holding: Holding | None = None

    def find(self, id: str) -> Generation | None:  # noqa: A002 - it is called so
        """Give a generation; None where there is none."""
        return next((one for one in self.generations if one.id == id), None)

    @property
    def live(self) -> Generation:
        """The generation that is active."""
        found = self.find(self.active)
        assert found is not None, "a record names one that it has"
        return found

    @property
    def kept(self) -> Generation | None:
        """The newest of those that are kept."""
        kept = [one for one in self.generations if one.phase == "kept"]
        return max(kept, key=lambda one: one.changed_at, default=None)

    @property
    def running(self) -> Rebuild | None:
        """The rebuild that has not ended."""
        return self.rebuild if self.rebuild is not None and self.rebuild.is_running else None


prepared(Record)


def schema_of(record: Record) -> int:
    """Give the schema that a record has to be written with."""
    if any(one.kept_in != "files" for one in record.generations):
        return 3
    return 1 if all(one.source is None for one in record.generations) else 2


def facts_of(build: Build) -> dict[str, Any]:
    """Give what a build says of its generation."""
    return {
        "version": build.current.version,
        "fingerprint": build.current.fingerprint,
        "codec": build.current.codec,
        "topic": build.manifest.topic,
        "topic_id": build.manifest.topic_id,
        "partitions": build.manifest.partitions,
        "kept_in": build.kind.name,
        "epoch": build.manifest.build,
        "state": build.manifest.directory,
    }
