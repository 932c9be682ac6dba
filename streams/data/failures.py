"""What is said where user code fails."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from projections.contract import CqrsProjection, Event, TransientError
from streams.errors import ProjectionError, at

__all__ = ["NotItsStream", "brief", "failed", "let_go", "users_frames"]

_HERE = Path(__file__).parents[1]


class NotItsStream(ValueError):
    """A model's id is not its event's stream: what is wrong is the projection's declaration, and not the event."""

    def __init__(self, model_id: str) -> None:
        super().__init__(
            f"extract_model_id gave {model_id!r}, which is not the event's stream. Kafka orders events within a "
            "partition only, so a model must be fed by one stream's partition. If every event of one model is of one "
            'stream, say so with `partition_by = "stream"` in the projection; if not, with `partition_by = "model"`: '
            "then events are written once more, keyed by model, and folded from there"
        )


def failed(
    projection: CqrsProjection[Any], event: Event, error: BaseException, what: str = "the projection failed"
) -> ProjectionError:
    """Say that a projection failed at an event, with the traceback of its own code."""
    failure = ProjectionError(
        f"{at(event.topic, event.partition, event.offset)}: {what}: {projection.name} on event {event.id} "
        f"({event.type}, stream {event.stream!r}): {type(error).__name__}: {error}. State and position are as they "
        "were before this event; correct the projection and start again.",
        projection=projection.name,
        topic=event.topic,
        partition=event.partition,
        offset=event.offset,
        event_id=str(event.id),
    )
    failure.user_traceback = users_frames(error)
    failure.is_transient = isinstance(error, TransientError)
    return failure


def brief(error: BaseException) -> str:
    """Write what went wrong in one line, with the line of code that raised it; cheap, for where many events fail."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return text
    code = trace.tb_frame.f_code
    return f"{text} ({os.path.basename(code.co_filename)}:{trace.tb_lineno} in {code.co_name})"  # noqa: PTH119  (a Path takes 10 µs)


def let_go(error: BaseException) -> None:
    """Let go of the frames that an error holds, once it is told: they hold it too, and whatever was folded with it."""
    known: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in known:
        known.add(id(one))
        one.__traceback__ = None
        one = one.__cause__ or one.__context__


def users_frames(error: BaseException) -> str:
    """Write an error's traceback from the first frame on that is not of this package; "" where none is."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and _HERE in Path(trace.tb_frame.f_code.co_filename).parents:
        trace = trace.tb_next
    return "" if trace is None else "".join(traceback.format_exception(type(error), error, trace))
