"""`Tally` with types for its events, and versions of it."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from projections.contract import CqrsProjection, Event
from tests.support import Tally

TYPED = "tests.integration.typed:TypedTally"
STRICT = "tests.integration.typed:StrictTally"
WIDER = "tests.integration.typed:WiderTally"


class Added(msgspec.Struct):
    event_type: ClassVar[str] = "add"
    n: int


class Dropped(msgspec.Struct):
    event_type: ClassVar[str] = "drop"


class Wider(msgspec.Struct):
    """Also a number that is text."""

    event_type: ClassVar[str] = "add"
    n: int | str


class TypedTally(CqrsProjection[dict[str, Any], Added | Dropped]):
    """The same models as Tally's; what that declines has no type here."""

    name = "tally"

    def extract_model_id(self, event: Event[Added | Dropped]) -> str | None:
        return event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event[Added | Dropped]) -> dict[str, Any] | None:
        match event.data:
            case Added(n=amount):
                return Tally().apply_to_model(model, msgspec.structs.replace(event, data={"n": amount}))
            case Dropped():
                return None


class StrictTally(TypedTally):
    """Every type is to be known."""

    name = "tally"
    unknown_events = "refuse"


class WiderTally(CqrsProjection[dict[str, Any], Wider | Dropped]):
    """The corrected types."""

    name = "tally"

    def extract_model_id(self, event: Event[Wider | Dropped]) -> str | None:
        return event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event[Wider | Dropped]) -> dict[str, Any] | None:
        match event.data:
            case Wider(n=amount):
                return Tally().apply_to_model(model, msgspec.structs.replace(event, data={"n": int(amount)}))
            case Dropped():
                return None
